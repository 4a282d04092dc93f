"""The abstract's headline numbers, the paper's beside ours."""

import pandas as pd

from persephonee.experiments.paper.figure_5 import times_cheaper
from persephonee.experiments.paper.figure_7 import throughput_gain
from persephonee.experiments.studies.figure_results import (
    COLOURS,
    Claim,
    FigureResult,
    busy,
    exit_means,
    original_accuracy,
)
from persephonee.experiments.studies.measurements import Measured
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Headline numbers"
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
        for name in ("hard labels", "self-distillation"):
            axes.plot([], [], "o", color=COLOURS[name], label=f"ours, {name}")
        axes.axvline(1, color=COLOURS["original"], linewidth=0.8)
        axes.set_yticks(range(len(factors)), [name for name, _, _ in factors])
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="times better than the original")
        figure.suptitle(measured.study.title, fontsize=10.5)
        ticks = (0.5, 1, 2, 5, 10, 25, 50)
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(0.4, 60)
        figure.legend(loc="outside lower center", ncols=3)
    numbers = pd.DataFrame(factors, columns=["what", "paper", "ours"]).astype({"ours": float})
    return FigureResult(figure=figure, numbers=numbers, claims=claims(measured))


def _colour(what: str) -> str:
    return COLOURS["self-distillation" if "no labels" in what else "hard labels"]


def factors_of(measured: Measured) -> list[tuple[str, float, float | None]]:
    """Return what is compared, the paper's factor and ours; None where the original's accuracy is not reached."""
    labels, none = "hard labels", "self-distillation"
    return [
        ("fewer MACs, labels", 3.1, times_cheaper(measured, labels, "macs")),
        ("fewer MACs, no labels", 2.3, times_cheaper(measured, none, "macs")),
        ("fewer parameters, labels", 25.1, times_cheaper(measured, labels, "params")),
        ("fewer parameters, no labels", 14.6, times_cheaper(measured, none, "params")),
        ("throughput, labels", 3.2, throughput_gain(measured, labels)),
        ("throughput, no labels", 2.2, throughput_gain(measured, none)),
        ("cheaper training", 2.2, training_cost_gain(measured.network)),
    ]


def training_cost_gain(network: MultiExitNetwork) -> float:
    """Return the MACs of training the whole network over those of training all exits the paper's way.

    A backward pass counts as two forward ones; the frozen backbone has none, and runs up to the deepest exit.
    """
    *early, last = network.costs.exit_costs
    exits = early[-1].macs + 3 * sum(row.head_macs for row in early)
    return 3 * last.macs / exits


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Return the factors, and the largest gain in accuracy."""
    gain = 100 * (exit_means(measured, "hard labels").after.iloc[:-1].max() - original_accuracy(measured))
    early = exit_means(measured, "hard labels").iloc[:-1]
    itself = 100 * float((early.after - early.before).iloc[int(early.after.argmax())])
    factors = [
        Claim(
            claim=what if "training" in what else f"{what}, at the original's accuracy",
            paper=f"{paper:g}x",
            ours=("not reached" if ours is None else f"{ours:.1f}x")
            + (busy(measured.latency["load"].max()) if "throughput" in what else ""),
            same_direction=ours is not None and ours > 1,
        )
        for what, paper, ours in factors_of(measured)
    ]
    best = Claim(
        claim="largest gain of an early exit over the original",
        paper="+15.9 points",
        ours=f"{gain:+.1f} points; {itself:+.1f} over the same exit before",
        same_direction=bool(gain > 0),
    )
    return (best, *factors)
