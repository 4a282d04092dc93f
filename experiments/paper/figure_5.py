"""Fig. 5a-d: accuracy against parameters and MACs per exit, before and after, with labels and without."""

from typing import Literal

import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, judge
from persephonee.experiments.studies.gains import (
    cheapest_reaching,
    exit_gains,
    exit_means,
    in_points,
    original_accuracy,
)
from persephonee.experiments.studies.measurements import Measured
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 5: accuracy against cost"
NOTE = """\
Each exit alone, without a guard and without a policy. An exit reaches what the 95% interval of its difference does not
exclude; the factor is that of the cheapest such exit. At 96 px the heads take up to a sixth of MobileNetV2's work, so
that no exit of it is as cheap as the paper's.
"""
STUDIES = ("resnet50", "mobilenet_v2")
PANELS = {
    "5a": ("hard labels", "params", (25.1, 4.7)),
    "5b": ("hard labels", "macs", (3.1, 1.6)),
    "5c": ("self-distillation", "params", (14.6,)),
    "5d": ("self-distillation", "macs", (2.3,)),
}
"""The scheme, the cost, and how many times cheaper the paper reaches the original and, with labels, +13 points."""
PAPER_GAINS = (0.0, 13.0)
TICKS = (0.03, 0.1, 0.3, 1, 3)
Cost = Literal["macs", "params"]
NAMES = {"params": "parameters", "macs": "MACs"}


def draw(measured: Measured) -> FigureResult:
    """Draw the four panels over the fraction of the original's cost; the paper's points as hollow diamonds."""
    original, early = original_accuracy(measured), measured.network.num_exits
    numbers = []
    with figure_style():
        figure = new_figure()
        figure.set_size_inches(7.6, 6.2)
        for axes, (letter, (scheme, cost, paper)) in zip(
            figure.subplots(2, 2, sharey=True).flat, PANELS.items(), strict=True
        ):
            table = exit_means(measured, scheme)
            shares = table[cost] / table[cost].iloc[-1]
            for name, stage in (("before", "before"), (scheme, "after")):
                gain = 100 * (table[stage] - original)
                numbers.append(
                    pd.DataFrame({"panel": letter, "stage": stage, "cost_fraction": shares, "gain_points": gain})
                )
                axes.plot(shares[:early], gain[:early], "o-", markersize=4, color=COLOURS[name], label=name)
            if scheme == "self-distillation":
                ours = exit_means(measured, "frequencies")
                gain = 100 * (ours.after - original)
                numbers.append(
                    pd.DataFrame(
                        {"panel": letter, "stage": "frequencies", "cost_fraction": shares, "gain_points": gain}
                    )
                )
                axes.plot(shares[:early], gain[:early], "s--", markersize=4, color=COLOURS["frequencies"],
                          label="class frequencies alone")  # fmt: skip
            axes.plot([1], [0], "*", markersize=11, color=COLOURS["original"], label="original", zorder=3)
            axes.axhline(0, color=COLOURS["original"], linewidth=0.8)
            for times, points in zip(paper, PAPER_GAINS, strict=False):
                axes.plot([1 / times], [points], "D", mfc="none", mec=COLOURS[scheme], markersize=7)
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set(xlabel=f"{NAMES[cost]} / original", title=f"{letter}: {scheme}")
        limits = [limit for axes in figure.axes for limit in axes.get_xlim()]
        for axes in figure.axes:
            axes.set_xlim(min(limits), max(limits))
            shown = [tick for tick in TICKS if min(limits) <= tick <= max(limits)]
            axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        for axes in figure.axes[::2]:
            axes.set_ylabel("accuracy − original (points)")
        figure.axes[2].plot([], [], "D", mfc="none", mec=COLOURS["original"], label="paper")
        unique = {}
        for axes in figure.axes:
            handles, labels = axes.get_legend_handles_labels()
            unique.update(dict(zip(labels, handles, strict=True)))
        figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=5)
        figure.suptitle(measured.study.title, fontsize=10.5)
    return FigureResult(figure=figure, numbers=pd.concat(numbers).reset_index(), claims=claims(measured))


CLAIMS: tuple[tuple[str, str, Cost, float, float], ...] = (
    ("labels", "hard labels", "macs", 0, 3.1),
    ("no labels, self-distillation", "self-distillation", "macs", 0, 2.3),
    ("no labels, class frequencies", "frequencies", "macs", 0, 2.3),
    ("labels", "hard labels", "macs", 13, 1.6),
    ("labels", "hard labels", "params", 0, 25.1),
    ("no labels, self-distillation", "self-distillation", "params", 0, 14.6),
    ("no labels, class frequencies", "frequencies", "params", 0, 14.6),
    ("labels", "hard labels", "params", 13, 4.7),
)
"""What is said of the scheme, the scheme, the cost, the gain over the original in points, and the paper's factor."""


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Return how many times cheaper the original's accuracy is, and what the paper's gain costs."""
    return tuple(_claim(measured, *one) for one in CLAIMS)


def factor_words(measured: Measured, scheme: str, cost: Cost, points: float = 0.0) -> tuple[float | None, str]:
    """Return how many times cheaper the cheapest exit with this gain is, and that in words."""
    gains = exit_gains(measured, scheme)
    found = cheapest_reaching(gains, cost, points)
    if found is None:
        best = max(gains, key=lambda gain: gain.points.mean)
        return None, f"not reached; exit {best.exit} has {in_points(best.points)}"
    factor = 1 / getattr(found, cost)
    return factor, f"{factor:.1f}x by exit {found.exit}, {in_points(found.points)}"


def _claim(measured: Measured, name: str, scheme: str, cost: Cost, points: float, paper: float) -> Claim:
    factor, ours = factor_words(measured, scheme, cost, points)
    what = "the original's accuracy" if points == 0 else f"{points:.0f} points more than the original"
    return Claim(
        claim=f"fewer {NAMES[cost]} for {what}, {name}",
        paper=f"{paper:g}x",
        ours=ours,
        verdict=judge(same_direction=factor is not None and factor > 1, as_far=factor is not None and factor >= paper),
    )
