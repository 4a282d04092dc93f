"""The abstract's headline numbers, the paper's beside ours."""

import pandas as pd

from persephonee.experiments.paper.figure_5 import factor_words
from persephonee.experiments.paper.figure_7 import throughput_gain
from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, busy, judge, shown_name
from persephonee.experiments.studies.gains import exit_gains, in_points
from persephonee.experiments.studies.measurements import Measured
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Headline numbers"
NOTE = """\
The abstract's numbers, read as the paper reads them: exits alone, and for throughput a threshold that was swept on test
samples. "No labels" is self-distillation in the paper; the rows with class frequencies are ours. What is deployed
stands in a figure of its own above.
"""
STUDIES = ("resnet50", "mobilenet_v2")


def draw(measured: Measured) -> FigureResult:
    """Draw the factors as dots, ours filled and the paper's hollow; what was not reached has no filled dot."""
    factors = factors_of(measured)
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        for y, (what, paper, ours) in enumerate(factors):
            axes.plot([paper], [y], "D", mfc="none", mec=COLOURS["original"], markersize=8)
            if ours is None:
                axes.annotate("not reached", (paper, y), (10, 0), textcoords="offset points", va="center", fontsize=8.5)
            else:
                axes.plot([ours], [y], "o", color=_colour(what), markersize=7)
        axes.plot([], [], "D", mfc="none", mec=COLOURS["original"], label="paper")
        for name in SCHEMES.values():
            axes.plot([], [], "o", color=COLOURS[name], label=f"ours, {shown_name(name)}")
        axes.axvline(1, color=COLOURS["original"], linewidth=0.8)
        axes.set_yticks(range(len(factors)), [name for name, _, _ in factors])
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="times better than the original")
        figure.suptitle(measured.study.title, fontsize=10.5)
        ticks = (0.5, 1, 2, 5, 10, 25, 50)
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(0.4, 60)
        figure.legend(loc="outside lower center", ncols=4)
    numbers = pd.DataFrame(factors, columns=["what", "paper", "ours"]).astype({"ours": float})
    return FigureResult(figure=figure, numbers=numbers, claims=claims(measured))


def _colour(what: str) -> str:
    for words, scheme in (("frequencies", "frequencies"), ("no labels", "self-distillation")):
        if words in what:
            return COLOURS[scheme]
    return COLOURS["hard labels"]


def factors_of(measured: Measured) -> list[tuple[str, float, float | None]]:
    """Return what is compared, the paper's factor and ours; None where the original's accuracy is not reached."""
    return [(what, paper, ours) for what, paper, ours, _ in _factors(measured)]


SCHEMES = {
    "labels": "hard labels",
    "no labels": "self-distillation",
    "no labels, class frequencies": "frequencies",
}
PAPER = {"macs": (3.1, 2.3, 2.3), "params": (25.1, 14.6, 14.6), "throughput": (3.2, 2.2, 2.2)}
"""The paper's factors with labels and without; in the third place, which the paper does not have, those without."""


def _factors(measured: Measured) -> list[tuple[str, float, float | None, str]]:
    found: list[tuple[str, float, float | None, str]] = []
    for (name, scheme), paper in zip(SCHEMES.items(), PAPER["macs"], strict=True):
        found.append((f"fewer MACs, {name}", paper, *factor_words(measured, scheme, "macs")))
    for (name, scheme), paper in zip(SCHEMES.items(), PAPER["params"], strict=True):
        found.append((f"fewer parameters, {name}", paper, *factor_words(measured, scheme, "params")))
    for (name, scheme), paper in zip(SCHEMES.items(), PAPER["throughput"], strict=True):
        ours = throughput_gain(measured, scheme)
        words = "not reached" if ours is None else f"{ours:.1f}x{busy(measured.latency['load'].max())}"
        found.append((f"throughput, {name}", paper, ours, words))
    training = training_cost_gain(measured.network)
    return [*found, ("cheaper training", 2.2, training, f"{training:.1f}x")]


def training_cost_gain(network: MultiExitNetwork) -> float:
    """Return the MACs of training the whole network over those of training all exits the paper's way.

    A backward pass counts as two forward ones; the frozen backbone has none, and runs up to the deepest exit.
    """
    *early, last = network.costs.exit_costs
    exits = early[-1].macs + 3 * sum(row.head_macs for row in early)
    return 3 * last.macs / exits


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Return the largest gain in accuracy, and the factors."""
    best = max((gain.points for gain in exit_gains(measured, "hard labels")), key=lambda points: points.mean)
    first = Claim(
        claim="largest gain of an early exit over the original, labels",
        paper="+15.9 points",
        ours=in_points(best),
        verdict=judge(same_direction=best.high >= 0, as_far=best.high >= 15.9),
    )
    factors = (
        Claim(
            claim=what if "training" in what else f"{what}, at the original's accuracy",
            paper=f"{paper:g}x",
            ours=words,
            verdict=judge(same_direction=ours is not None and ours > 1, as_far=ours is not None and ours >= paper),
        )
        for what, paper, ours, words in _factors(measured)
    )
    return (first, *factors)
