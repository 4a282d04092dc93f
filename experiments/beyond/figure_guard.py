"""Beyond the paper: what the guard of invariant 4 changes, which puts exits back that training made worse."""

from typing import Any

import numpy as np
import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, shown_name
from persephonee.experiments.studies.measurements import Measured
from persephonee.server.report.figure_style import figure_style, new_figure, shared_legend

TITLE = "The guard"
NOTE = """\
An exit that became significantly worse on the calibration samples goes back. What that spares some users and costs
others is judged on the test samples.
"""
STUDIES = ("resnet50", "mobilenet_v2", "qmnist", "writers")


SHOWN = ("hard labels", "self-distillation", "frequencies, no labels", "frequencies, labels")


def draw(measured: Measured) -> FigureResult:
    """Draw the fraction of users whom an exit hurts on their test part, with the guard and without."""
    numbers = table(measured)
    schemes = [name for name in measured.study.schemes if name in SHOWN]
    with figure_style():
        figure = new_figure()
        axes_of = figure.subplots(1, len(schemes), sharey=True, squeeze=False)[0]
        for axes, scheme in zip(axes_of, schemes, strict=True):
            rows = numbers[numbers.scheme == scheme]
            x = np.arange(len(rows))
            colour = COLOURS[scheme]
            axes.bar(x - 0.2, 100 * rows.hurt_without, width=0.38, fill=False, hatch="////", edgecolor=colour,
                     label="without the guard")  # fmt: skip
            axes.bar(x + 0.2, 100 * rows.hurt_with, width=0.38, color=colour, label="with the guard")
            axes.set_xticks(x, rows.exit)
            axes.set(xlabel="exit", title=shown_name(scheme).replace(", ", ",\n"))
            axes.grid(visible=False, axis="x")
        # where nobody is hurt the axis still begins at 0, and says so
        most = 100 * max(numbers.hurt_with.max(), numbers.hurt_without.max())
        axes_of[0].set_ylim(0, max(1.3 * most, 5))
        axes_of[0].set_ylabel("users whom the exit hurts (%)")
        shared_legend(figure)
        figure.suptitle(measured.study.title, fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(numbers))


def table(measured: Measured) -> pd.DataFrame:
    """Return a row per scheme and early exit: shares of users in [0, 1], accuracies and changes of accuracy."""
    exits = measured.exits[measured.exits.whole & (measured.exits.exit < measured.network.num_exits)]
    changes = exits.assign(
        with_guard=exits.after - exits.before,
        without=exits.unguarded - exits.before,
        acted=exits.after != exits.unguarded,
    )
    groups = changes.groupby(["scheme", "exit"])
    shares = {
        name: groups[column].agg(lambda c: float((c < 0).mean()))
        for name, column in (("hurt_with", "with_guard"), ("hurt_without", "without"))
    }
    means = {
        "accuracy_with": groups.after.mean(),
        "accuracy_without": groups.unguarded.mean(),
        "worst_with": groups.with_guard.min(),
        "worst_without": groups.without.min(),
        "acted": groups.acted.mean(),
    }
    return pd.DataFrame({**shares, **means}).reset_index()


def _claims(numbers: pd.DataFrame) -> tuple[Claim, ...]:
    found = []
    for scheme, rows in numbers.groupby("scheme"):
        if scheme not in SHOWN:
            continue
        mean: Any = rows.mean(numeric_only=True)
        found.append(
            Claim(
                claim=shown_name(str(scheme)),
                paper="not given",
                ours=f"changes {mean.acted:.0%} of exits; hurt {mean.hurt_without:.0%} without, {mean.hurt_with:.0%} "
                f"with; accuracy {mean.accuracy_without:.1%} without, {mean.accuracy_with:.1%} with; worst "
                f"{100 * rows.worst_without.min():+.1f} and {100 * rows.worst_with.min():+.1f} points",
            )
        )
    return tuple(found)
