"""Fig. 4: accuracy per exit against the number of training samples, hard labels."""

import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, exit_line, judge
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.studies import Study
from persephonee.server.report.figure_style import PAPER as PAPER_COLOUR
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 4: accuracy against the number of samples"
NOTE = """\
Hard labels, the paper's schedule, each exit alone; means over the same users at each number of samples. Fewer samples
suffice here because an exit has a lower original to reach.
"""
STUDIES = ("resnet50", "mobilenet_v2")
PAPER = {2: 2000, 3: 150}
"""Samples with which an exit is as good as the original."""


def can_draw(study: Study) -> bool:
    """Return whether the study measures fewer samples than a user has."""
    return bool(study.sample_counts)


def draw(measured: Measured) -> FigureResult:
    """Draw each exit's gain over the original; where it crosses 0 in the paper, a hollow diamond says the exit."""
    means = gains(measured)
    early = measured.network.num_exits
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        for exit in range(early):
            axes.plot(means.index, 100 * means[exit], label=f"exit {exit}", **exit_line(exit, early))
        axes.axhline(0, color=COLOURS["original"], linewidth=1.2, label="original")
        for exit, samples in PAPER.items():
            axes.plot([samples], [0], "D", mfc="none", mec=COLOURS["original"], markersize=7)
            axes.annotate(f"exit {exit}", (samples, 0), (0, 7), textcoords="offset points", ha="center", fontsize=8.5,
                          bbox={"facecolor": PAPER_COLOUR, "edgecolor": "none", "pad": 1}, zorder=4)  # fmt: skip
        axes.plot([], [], "D", mfc="none", mec=COLOURS["original"], label="paper: reaches\nthe original")
        axes.set_xscale("log")
        ticks = sorted({*means.index, *PAPER.values()})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45 if len(ticks) > 7 else 0)
        axes.minorticks_off()
        axes.set(xlabel="training samples of a user", ylabel="accuracy − original (points)")
        axes.margins(y=0.12)
        figure.suptitle(measured.study.title, fontsize=10.5)
        figure.legend(loc="outside right center")
    numbers = means.rename(columns=lambda exit: f"exit_{exit}").reset_index()
    return FigureResult(figure=figure, numbers=numbers, claims=claims(measured, means))


def gains(measured: Measured) -> pd.DataFrame:
    """Return mean gain over the original, rows: number of samples, columns: early exits; the same users in each row."""
    counts_shown = measured.exits.num_train.isin(measured.study.sample_counts)
    table = measured.exits[(measured.exits.scheme == "hard labels") & counts_shown]
    counts = table.groupby("user").num_train.nunique()
    table = table[table.user.isin(counts[counts == counts.max()].index)]
    last = measured.network.num_exits
    original = table[table.exit == last].set_index(["user", "num_train"]).before.rename("original")
    joined = table[table.exit < last].join(original, on=["user", "num_train"])
    joined["gain"] = joined.unguarded - joined.original
    return joined.pivot_table(index="num_train", columns="exit", values="gain")


def claims(measured: Measured, means: pd.DataFrame) -> tuple[Claim, ...]:
    """Return with how many samples the paper's exits reach the original."""
    found = []
    for exit, samples in PAPER.items():
        ours = min(exit, measured.network.num_exits - 1)
        reached = means.index[means[ours] >= 0]
        best = f"not with {means.index[-1]:,}; {100 * means[ours].iloc[-1]:+.1f} points there"
        found.append(
            Claim(
                claim=f"samples with which exit {exit} is as good as the original",
                paper=f"{samples:,}",
                ours=f"{reached[0]:,}" if len(reached) else best,
                verdict=judge(same_direction=bool(len(reached)), as_far=bool(len(reached)) and reached[0] <= samples),
            )
        )
    return tuple(found)
