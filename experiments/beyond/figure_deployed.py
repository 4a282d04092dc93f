"""Beyond the paper: what is deployed, on test samples that chose nothing, by the rule of a federation."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult
from persephonee.experiments.studies.gains import mean_of
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.rule_outcomes import rule_outcomes
from persephonee.server.report.figure_style import figure_style, new_figure, shared_legend

TITLE = "What is deployed"
NOTE = """\
The policy of each user is chosen by the rule `federated` with the users' risk curves, for a drop of at most one point:
against the last exit, which the user's class frequencies have improved, or against the original network
(`--drop-reference`). The second saves more and gains less. A deployed policy keeps the whole network, so that it saves
no parameters. The check for unfamiliar images, which sends some 2% of a user's own to the last exit, is left out; what
the other rules give stands in "What a policy promises".
"""
STUDIES = ("resnet50", "mobilenet_v2", "qmnist", "writers")
SCHEMES = {
    "frequencies": "no labels, class frequencies alone",
    "frequencies, no labels": "no labels, class frequencies and self-distillation",
    "frequencies, labels": "labels, class frequencies and hard labels",
}
MARKERS = {"last exit": "o", "original": "s"}
RULE = "federated"


def draw(measured: Measured) -> FigureResult:
    """Draw the policies' mean accuracy over their mean cost, with the original network beside them."""
    numbers = table(measured)
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        rows: Iterable[Any] = numbers.itertuples()
        for row in rows:
            error = [[row.accuracy - row.accuracy_low], [row.accuracy_high - row.accuracy]]
            axes.errorbar(
                100 * row.cost, 100 * row.accuracy, yerr=[[100 * e for e in side] for side in error], capsize=3,
                marker=MARKERS[row.reference], markersize=6, linestyle="none", color=COLOURS[row.scheme],
                label=f"{SCHEMES[row.scheme]}; against the {row.reference}",
            )  # fmt: skip
        original = 100 * float(numbers.original.iloc[0])
        axes.plot([100], [original], "*", markersize=11, color=COLOURS["original"], label="original network")
        axes.axhline(original, color=COLOURS["original"], linewidth=0.8)
        axes.set(xlabel="MACs of the original's (%)", ylabel="accuracy (%, mean of users)")
        axes.set_xlim(left=0)
        shared_legend(figure, ncols=1)
        figure.set_size_inches(7.6, 5.2)
        figure.suptitle(measured.study.title, fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(numbers))


def table(measured: Measured) -> pd.DataFrame:
    """Return a row per scheme and reference: means over users, and 95 % intervals of what is compared.

    Returns:
        scheme, reference, users; accuracy with its interval, original, gain in points with its interval, cost and
        latency as fractions of the original's with the cost's interval, and the fraction of users beyond the tolerance.
    """
    found = []
    for scheme in (name for name in SCHEMES if name in measured.study.schemes):
        for reference in MARKERS:
            users = rule_outcomes(measured, scheme, reference)[RULE]
            accuracy, cost = mean_of(users.accuracy.to_numpy()), mean_of(users.cost.to_numpy())
            gain = mean_of(100 * (users.accuracy - users.original).to_numpy())
            found.append(
                {
                    "scheme": scheme,
                    "reference": reference,
                    "users": len(users),
                    "accuracy": accuracy.mean,
                    "accuracy_low": accuracy.low,
                    "accuracy_high": accuracy.high,
                    "original": users.original.mean(),
                    "gain": gain.mean,
                    "gain_low": gain.low,
                    "gain_high": gain.high,
                    "cost": cost.mean,
                    "cost_low": cost.low,
                    "cost_high": cost.high,
                    "latency": users.latency.mean(),
                    "worse": (users.accuracy < users.original - 0.02 - 1e-9).mean(),
                }
            )
    return pd.DataFrame(found)


def _claims(numbers: pd.DataFrame) -> tuple[Claim, ...]:
    rows: Iterable[Any] = numbers.itertuples()
    original = Claim(claim="the original network", paper="not given", ours=f"{numbers.original.iloc[0]:.1%}")
    return (
        original,
        *(
            Claim(
                claim=f"{SCHEMES[row.scheme]}; against the {row.reference}",
                paper="not given",
                ours=f"{row.accuracy:.1%}, {row.gain:+.1f} points ({row.gain_low:.1f} to {row.gain_high:.1f}); "
                f"{row.cost:.0%} of the MACs ({row.cost_low:.0%} to {row.cost_high:.0%}), {row.latency:.0%} of the "
                f"latency; {row.worse:.0%} of users lose more than 2 points",
            )
            for row in rows
        ),
    )
