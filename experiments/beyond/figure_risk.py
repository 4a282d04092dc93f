"""Beyond the paper: the three rules that choose a policy, by what users lose under them and what that costs."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, judge, shown_name
from persephonee.experiments.studies.gains import mean_of
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.rule_outcomes import RULES, SETTINGS, rule_outcomes
from persephonee.server.report.figure_style import figure_style, new_figure, shared_legend

TITLE = "What a policy promises"
NOTE = """\
The drop is that of the policy against the last exit in force, on test samples. The rule `paper` fits the user's own
calibration samples; `controlled` and `federated` keep a drop of one point by other users' risk curves: those of half of
the users, drawn anew twenty times, and those of all. Where nothing can be promised the original network answers.
"""
STUDIES = ("resnet50", "mobilenet_v2", "qmnist", "writers")
SCHEMES = ("hard labels", "self-distillation", "frequencies, no labels", "frequencies, labels")


def draw(measured: Measured) -> FigureResult:
    """Draw each rule's mean drop, with its interval over users, against its cost."""
    numbers = table(measured)
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        for scheme, rows in numbers.groupby("scheme", sort=False):
            drawn: Iterable[Any] = rows.itertuples()
            for marker, row in zip("osD", drawn, strict=True):
                error = [[row.drop_points - row.low], [row.high - row.drop_points]]
                axes.errorbar(
                    100 * row.cost, row.drop_points, yerr=error, fmt=marker, capsize=3, color=COLOURS[str(scheme)],
                    label=f"{row.rule}; {shown_name(str(scheme))}",
                )  # fmt: skip
        tolerance = 100 * SETTINGS.drop_tolerance
        axes.axhline(tolerance, linestyle="--", linewidth=1.0, color=COLOURS["original"], label="tolerance")
        axes.set(xlabel="MACs of the original's (%)", ylabel="drop against the last exit (points)")
        shared_legend(figure, ncols=2)
        figure.set_size_inches(7.6, 5.6)
        figure.suptitle(measured.study.title, fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(numbers))


def table(measured: Measured) -> pd.DataFrame:
    """Return a row per scheme and rule.

    Returns:
        scheme, rule, users, the mean drop and its 95 % bootstrap interval in points, the fraction of users beyond the
        tolerance, the mean cost over the original network's, and the fraction of users whom the original serves.
    """
    found = []
    for scheme in (name for name in SCHEMES if name in measured.study.schemes):
        outcomes = rule_outcomes(measured, scheme)
        for rule in RULES:
            users = outcomes[rule]
            # differences of sums in another order are no drops
            drops = np.round(100 * (users.reference - users.accuracy).to_numpy(), 9) + 0.0
            mean = mean_of(drops)
            found.append(
                {
                    "scheme": scheme,
                    "rule": rule,
                    "users": len(drops),
                    "drop_points": mean.mean,
                    "low": mean.low,
                    "high": mean.high,
                    "beyond": (drops > 100 * SETTINGS.drop_tolerance + 1e-9).mean(),
                    "cost": users.cost.mean(),
                    "original": users.is_original.mean(),
                }
            )
    return pd.DataFrame(found)


def _claims(numbers: pd.DataFrame) -> tuple[Claim, ...]:
    rows: Iterable[Any] = numbers.itertuples()
    tolerance = 100 * SETTINGS.drop_tolerance
    return tuple(
        Claim(
            claim=f"the policy loses at most 1 point: {row.rule}; {shown_name(row.scheme)}",
            paper="a drop within the tolerance",
            ours=f"{row.drop_points:.1f} points ({row.low:.1f} to {row.high:.1f}) at {row.cost:.0%}, {row.beyond:.0%} "
            "of users beyond it",
            verdict=judge(same_direction=row.low <= tolerance, as_far=row.drop_points <= tolerance),
        )
        for row in rows
    )
