import itertools

import numpy as np

from persephonee.server.report.figure_style import for_page
from persephonee.server.report.figures import pareto_front


def test_the_pareto_front_is_what_brute_force_finds():
    rng = np.random.default_rng(3)
    for _ in range(50):
        points = [(float(cost), float(accuracy)) for cost, accuracy in rng.integers(0, 6, (12, 2))]
        beaten = {
            one
            for one, other in itertools.product(points, repeat=2)
            if other != one and other[0] <= one[0] and other[1] >= one[1]
        }
        assert pareto_front(points) == sorted(set(points) - beaten)


def test_a_figure_in_the_page_takes_the_pages_colours_and_unique_ids():
    svg = (
        '<?xml version="1.0"?><svg width="9pt" height="8pt" viewBox="0 0 9 8"><metadata>x</metadata>'
        '<g id="a" style="fill: #0072b2"/><use xlink:href="#a" clip-path="url(#a)"/></svg>\n'
    )
    assert for_page(svg, "one", "A title") == (
        '<svg viewBox="0 0 9 8" role="img" aria-label="A title">'
        '<g id="one-a" style="fill: var(--after)"/><use xlink:href="#one-a" clip-path="url(#one-a)"/></svg>'
    )
