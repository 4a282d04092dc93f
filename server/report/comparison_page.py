"""The page of a comparison: comparison.json, the figures and comparison.html, in the style of a run's report."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from persephonee.multi_exit.atomic_files import write_json_atomically, write_text_atomically
from persephonee.server.errors import ServerError
from persephonee.server.intervals import Estimate
from persephonee.server.report.figure_style import (
    AFTER,
    BEFORE,
    FRONT,
    ORIGINAL,
    figure_style,
    for_page,
    new_figure,
    save_figure,
)
from persephonee.server.report.template import FIGURES, PAGE_START, STYLE
from persephonee.server.results.comparison import Comparison
from persephonee.server.results.comparison_text import tables_of, verdicts
from persephonee.server.results.run_folder import CONFIG_NAME

PAGE_NAME = "comparison.html"
JSON_NAME = "comparison.json"

# of Okabe and Ito, the report's own colours first; a run keeps its colour and its marker in all figures
COLOURS = (ORIGINAL, AFTER, BEFORE, FRONT, "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "osD^vPX"

TEMPLATE = (
    PAGE_START
    + """\
<header>
<p class="kicker">PersEPhonEE: runs side by side, over {{ users }} users whom all of them measured</p>
<h1>{{ title }}</h1>
{% for sentence in verdicts %}<p class="headline">{{ sentence }}</p>
{% endfor %}
{% for sentence in remarks %}<p class="more">{{ sentence }}</p>
{% endfor %}
</header>
"""
    + FIGURES
    + """\
{% for table in tables %}
<section class="whole">
<h2>{{ table.title }}</h2>
{{ numbers(table) }}
</section>
{% endfor %}
<footer>Accuracies are of each user's own held-out test samples, costs multiply-adds (MACs) per sample under the
policy. Intervals are percentiles of a bootstrap over users; differences are taken user by user first.</footer>
</main>
</body>
</html>
"""
)


def draw_comparison(comparison: Comparison, out: Path) -> Path:
    """Write comparison.json, figures/ and comparison.html into `out`, and return the page's path.

    Raises:
        ServerError: `out` is a file, or holds a run.
    """
    if out.exists() and not out.is_dir():
        raise ServerError(f"{out} is a file: a comparison needs a folder of its own.")
    if (out / CONFIG_NAME).exists():
        raise ServerError(f"{out} holds a run: give a comparison a folder of its own.")
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(out / JSON_NAME, asdict(comparison))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE).render(
        style=Markup(STYLE),
        title=", ".join(run.name for run in comparison.runs),
        users=len(comparison.users),
        verdicts=verdicts(comparison),
        remarks=comparison.remarks,
        figures=_draw_figures(comparison, out / "figures"),
        tables=tables_of(comparison),
    )
    write_text_atomically(out / PAGE_NAME, page)
    return out / PAGE_NAME


def _draw_figures(comparison: Comparison, folder: Path) -> list[dict[str, Any]]:
    plan = (
        ("accuracy-against-cost", "Accuracy against cost", _draw_cost, "Upwards is more accurate, leftwards cheaper."),
        (
            "gains",
            f"What users gain over {comparison.runs[0].name}",
            _draw_gains,
            "The cumulative fraction of users over their difference in accuracy: right of 0 are users whom a run "
            "helps, left of it those whom it hurts.",
        ),
        ("exits", "Accuracy of each exit alone", _draw_exits, "Bars hold 95 % of a bootstrap over users."),
    )
    drawn = []
    with figure_style():
        for name, title, draw, see in plan:
            svg = save_figure(draw(comparison), folder, name)
            # the title stands in an attribute of the figure, and a run's name is anybody's text
            plain = title if title.replace(" ", "").isalnum() else "What users gain"
            drawn.append({"title": title, "see": see, "svg": Markup(for_page(svg, name, plain))})
    return drawn


def _draw_cost(comparison: Comparison) -> Figure:
    figure = new_figure()
    axes = figure.subplots()
    for number, run in enumerate(comparison.runs):
        axes.errorbar(
            run.mean_macs.mean / 1e6,
            run.accuracy.mean,
            xerr=_bars(run.mean_macs, 1e6),
            yerr=_bars(run.accuracy),
            label=_label(run.name),
            **_look(number),
        )
    axes.set_xlabel("million MACs a sample, under the policy")
    axes.set_xlim(left=0)
    _percent_axis(axes.yaxis, axes.set_ylabel)
    _legend(figure)
    return figure


def _draw_gains(comparison: Comparison) -> Figure:
    figure = new_figure()
    axes = figure.subplots()
    for number, run in enumerate(comparison.runs):
        if run.difference is not None:
            axes.ecdf(run.difference.gains, label=_label(run.name), color=COLOURS[number % len(COLOURS)], linewidth=2)
    axes.axvline(0, color=ORIGINAL, linewidth=1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_xlabel("difference in accuracy, points")
    axes.set_ylabel("users with at most this")
    _legend(figure)
    return figure


def _draw_exits(comparison: Comparison) -> Figure:
    figure = new_figure()
    axes = figure.subplots()
    width = 0.5 / len(comparison.runs)
    for number, run in enumerate(comparison.runs):
        places = np.array([entry.exit for entry in run.exits]) + (number - (len(comparison.runs) - 1) / 2) * width
        means = [entry.accuracy.mean for entry in run.exits]
        bars = np.array([_bars(entry.accuracy) for entry in run.exits]).reshape(-1, 2).T
        axes.errorbar(places, means, yerr=bars, label=_label(run.name), **_look(number))
    axes.set_xlabel("exit; the last one of a run is its original classifier")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _percent_axis(axes.yaxis, axes.set_ylabel)
    _legend(figure)
    return figure


def _bars(value: Estimate, unit: float = 1.0) -> list[list[float]]:
    return [[(value.mean - value.low) / unit], [(value.high - value.mean) / unit]]


def _look(number: int) -> dict[str, Any]:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": "none", "capsize": 3, "markersize": 6}


def _label(name: str) -> str:
    # matplotlib reads formulas between dollars, and hides labels that begin with a line
    return f"run {name}".replace("$", r"\$")


def _percent_axis(axis: Any, set_label: Any) -> None:
    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    set_label("accuracy, mean over users")


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=3)
