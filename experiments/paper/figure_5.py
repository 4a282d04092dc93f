"""Fig. 5a-d: accuracy against parameters and MACs per exit, before and after, with labels and without."""

import pandas as pd

from persephonee.experiments.studies.figure_results import (
    COLOURS,
    Claim,
    FigureResult,
    exit_means,
    original_accuracy,
)
from persephonee.experiments.studies.measurements import Measured
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 5: accuracy against cost"
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


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Return how many times cheaper the original's accuracy is, and what the paper's gain costs."""
    found = []
    for scheme, cost, paper in PANELS.values():
        for times, gain in zip(paper, PAPER_GAINS, strict=False):
            what = "the original's accuracy" if gain == 0 else f"{gain:.0f} points more than the original"
            ours = times_cheaper(measured, scheme, cost, gain)
            found.append(
                Claim(
                    claim=f"fewer {NAMES[cost]} for {what}, {scheme}",
                    paper=f"{times:g}x",
                    ours=_words(measured, scheme, cost, times, gain),
                    same_direction=ours is not None and ours > 1,
                )
            )
    return tuple(found)


def times_cheaper(measured: Measured, scheme: str, cost: str, gain_points: float = 0.0) -> float | None:
    """Return the original's cost over that of the cheapest exit with this gain, None where none has it."""
    table = exit_means(measured, scheme)
    early = table.iloc[:-1]
    enough = early[early.after >= original_accuracy(measured) + gain_points / 100 - 1e-9]
    return float(table[cost].iloc[-1] / enough[cost].min()) if len(enough) else None


def shortfall(measured: Measured, scheme: str, cost: str, times: float, gain_points: float) -> tuple[int, float] | None:
    """Return the best exit of those that are `times` cheaper, and what it lacks in points; None where none is."""
    table = exit_means(measured, scheme)
    cheap = table.iloc[:-1][table[cost].iloc[-1] / table[cost].iloc[:-1] >= times]
    if not len(cheap):
        return None
    wanted = original_accuracy(measured) + gain_points / 100
    return int(cheap.after.idxmax()), 100 * float(wanted - cheap.after.max())


def _words(measured: Measured, scheme: str, cost: str, times: float, gain_points: float) -> str:
    ours = times_cheaper(measured, scheme, cost, gain_points)
    if ours is not None and ours >= times:
        return f"{ours:.1f}x"
    after = exit_means(measured, scheme).after.iloc[:-1]
    points = 100 * (after.max() - original_accuracy(measured))
    said = (
        f"{ours:.1f}x" if ours is not None else f"not reached; the best is exit {after.idxmax()}, {points:+.1f} points"
    )
    missed = shortfall(measured, scheme, cost, times, gain_points)
    no_exit = f"no exit is {times:g}x cheaper"
    return (
        f"{said}; {no_exit}"
        if missed is None
        else f"{said}; at {times:g}x exit {missed[0]} lacks {missed[1]:.1f} points"
    )
