"""Fig. 3b: how many users reach which accuracy, at exit 0 and with the whole policy."""

from typing import Any

import numpy as np
import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, judge
from persephonee.experiments.studies.measurements import Measured
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 3b: users by accuracy"
NOTE = """\
QMNIST has ten digits and real writers, and nearly all of them have 90% before they personalise; the built-in writers
have 62 characters and are drawn. FEMNIST itself could not be had here; [data.md](data.md) says how to run it.
"""
STUDIES = ("femnist", "qmnist", "writers")
REACHED = 0.9
STYLES: dict[str, dict[str, Any]] = {
    "original": {"linewidth": 3.0},
    "hard labels": {"linewidth": 1.8},
    "before": {"linewidth": 1.4, "linestyle": "--"},
}
"""In the order of drawing; where curves coincide, all stay visible."""

PAPER = {"before": 0.40, "hard labels": 0.75, "original": 0.60}
"""Shares of the paper's users that reach 90% at exit 0, and with the last exit."""


def draw(measured: Measured) -> FigureResult:
    """Draw the fraction of users that reach an accuracy; the paper's shares at 90% as hollow diamonds."""
    panels = {"exit 0": _of_exit_0(measured), "whole policy": _of_policy(measured)}
    with figure_style():
        figure = new_figure()
        for axes, (title, columns) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            for name, values in ((name, columns[name]) for name in STYLES):
                ranked = np.sort(values)
                shares = 1 - np.arange(len(ranked)) / len(ranked)
                x, y = np.concatenate([[0], ranked, [1]]), np.concatenate([[1], shares, [0]])
                axes.step(x, y, where="pre", color=COLOURS[name], **STYLES[name], label=name)
            if title == "exit 0":
                for name, share in PAPER.items():
                    axes.plot([REACHED], [share], "D", mfc="none", mec=COLOURS[name], markersize=7, clip_on=False)
            low = min(float(values.min()) for values in columns.values())
            axes.set(xlabel="accuracy of a user", title=title, ylim=(0, 1.02), xlim=(max(0, low - 0.05), 1))
        figure.axes[0].set_ylabel("fraction of users who reach it")
        figure.axes[0].plot([], [], "D", mfc="none", mec=COLOURS["original"], label="paper, MobileNetV2 on FEMNIST")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(measured.study.title, fontsize=10.5)
    numbers = pd.concat({title: pd.DataFrame(columns) for title, columns in panels.items()}, axis=1)
    numbers.columns = [": ".join(names) for names in numbers.columns]
    return FigureResult(figure=figure, numbers=numbers, claims=claims(measured))


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Return the shares of users that reach 90%, and that gain at all."""
    first = _of_exit_0(measured)
    shares = {name: float((values >= REACHED).mean()) for name, values in first.items()}
    gained = float((first["hard labels"] > first["before"]).mean())
    return (
        Claim(
            claim="users who reach 90% at exit 0, before and after (hard labels)",
            paper="40% and 75%",
            ours=f"{shares['before']:.0%} and {shares['hard labels']:.0%}; {gained:.0%} of users gain",
            verdict=judge(
                same_direction=shares["hard labels"] > shares["before"],
                as_far=shares["hard labels"] - shares["before"] >= PAPER["hard labels"] - PAPER["before"],
            ),
        ),
        Claim(
            claim="users who reach 90% at exit 0, personalised, against the original",
            paper="75% against 60%",
            ours=f"{shares['hard labels']:.0%} against {shares['original']:.0%}",
            verdict=judge(
                same_direction=shares["hard labels"] > shares["original"],
                as_far=shares["hard labels"] - shares["original"] >= PAPER["hard labels"] - PAPER["original"],
            ),
        ),
    )


def _of_exit_0(measured: Measured) -> dict[str, pd.Series]:
    table = measured.exits[(measured.exits.scheme == "hard labels") & measured.exits.whole]
    first = table[table.exit == 0].set_index("user")
    last = table[table.exit == measured.network.num_exits].set_index("user")
    return {"before": first.before, "hard labels": first.unguarded, "original": last.before}


def _of_policy(measured: Measured) -> dict[str, pd.Series]:
    table = measured.policies[measured.policies.scheme == "hard labels"].set_index("user")
    return {
        "before": table.accuracy_before,
        "hard labels": table.accuracy_after,
        "original": table.accuracy_original,
    }
