"""Beyond the paper: what personalisation gains when users differ more, or less, in the classes that they meet.

The paper draws each user's popularity of classes from a Gaussian and does not print its width. The narrower it is, the
fewer classes an exit has to tell apart; the original, which knows all of them, gains nothing by it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, shown_name
from persephonee.experiments.studies.gains import exit_means
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.studies import Study
from persephonee.server.report.figure_style import figure_style, new_figure, shared_legend

TITLE = "How personal the users are"
NOTE = """\
The narrower a user's popularity of classes, the more there is to gain. Where it is flat, nobody counts as having class
frequencies of their own and these change nothing, while training on a few samples of each class does harm.
"""
STUDIES = ("mobilenet_v2",)
NEEDS_OWN_STUDY = True
SCHEMES = ("hard labels", "self-distillation", "frequencies", "frequencies, labels")
FACTORS = (0.5, 2.0, 4.0)
"""Of the study's own width, which is the standard deviation of a user's popularity, in classes."""
USERS = 24


def variants(study: Study) -> dict[str, Study]:
    """Return the study with users of each other width."""
    fewer = replace(study, schemes=SCHEMES, sample_counts=(), num_users=min(USERS, study.num_users))
    widths = [factor * study.data.label_skew_width for factor in FACTORS]
    return {
        f"width_{width:g}".replace(".", "_"): replace(fewer, data=replace(study.data, label_skew_width=width))
        for width in widths
    }


def draw(measured: Measured, **others: Measured) -> FigureResult:
    """Draw the original's accuracy and the deepest early exit's, over the width."""
    numbers = table((measured, *others.values()))
    with figure_style():
        figure = new_figure()
        axes_of = figure.subplots(1, len(SCHEMES), sharey=True)
        for axes, scheme in zip(axes_of, SCHEMES, strict=True):
            rows = numbers[numbers.scheme == scheme]
            for name, column, style in (
                ("original", "original", "--"),
                ("before", "before", "o-"),
                (scheme, "after", "s-"),
            ):
                axes.plot(rows.classes, rows[column], style, markersize=5, color=COLOURS[name], label=name)
            axes.set(title=shown_name(scheme).replace(", ", ",\n"), xscale="log")
            axes.set_xticks(rows.classes, [f"{classes:.0f}" for classes in rows.classes], minor=False)
            axes.minorticks_off()
        axes_of[0].set_ylabel("accuracy of the deepest exit (mean)")
        figure.supxlabel("classes that hold 95% of a user's images", fontsize=9.5)
        shared_legend(figure)
        figure.suptitle(measured.study.title, fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(numbers))


def table(all_measured: tuple[Measured, ...]) -> pd.DataFrame:
    """Return a row per width and scheme: the deepest early exit before and after, and the original."""
    rows = []
    for measured in sorted(all_measured, key=lambda one: one.study.data.label_skew_width):
        width = measured.study.data.label_skew_width
        for scheme in SCHEMES:
            means = exit_means(measured, scheme)
            deepest = means.iloc[-2]
            rows.append(
                {
                    "width": width,
                    "classes": popular_classes(measured.network.num_classes, width),
                    "scheme": scheme,
                    "users": measured.exits.user.nunique(),
                    "original": means.before.iloc[-1],
                    "before": deepest.before,
                    "after": deepest.after,
                }
            )
    return pd.DataFrame(rows)


def popular_classes(num_classes: int, width: float, share: float = 0.95) -> int:
    """Return how many of the most popular classes together hold `share` of a user's images."""
    paths = np.arange(num_classes) - (num_classes - 1) / 2
    popularity = np.sort(np.exp(-0.5 * (paths / width) ** 2))[::-1]
    return int(np.searchsorted(np.cumsum(popularity / popularity.sum()), share) + 1)


def _claims(numbers: pd.DataFrame) -> tuple[Claim, ...]:
    found = []
    for width, rows in numbers.groupby("width"):
        first: Any = rows.iloc[0]
        schemes: Any = rows.itertuples()
        after = ", ".join(f"{row.after:.1%} ({shown_name(row.scheme)})" for row in schemes)
        found.append(
            Claim(
                claim=f"width {width:g}: {first.classes} classes hold 95% of a user's images",
                paper="not given",
                ours=f"original {first.original:.1%}; deepest early exit {first.before:.1%} to {after} "
                f"({first.users} users)",
            )
        )
    return tuple(found)
