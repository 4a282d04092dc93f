"""Beyond the paper: whom personalisation helps and whom it hurts, exit by exit."""

from typing import Any

import numpy as np
import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, shown_name
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.rule_outcomes import rule_outcomes
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Users helped and hurt"
NOTE = """\
Exits in force, with the guard, against the same exit before; the policy in force, by the rule `controlled` and with the
drop counted against the last exit, against the original network.
"""
STUDIES = ("resnet50", "mobilenet_v2", "qmnist", "writers")
SCHEME = "hard labels"
HELPED, HURT = COLOURS[SCHEME], "#e69f00"


def draw(measured: Measured) -> FigureResult:
    """Draw the shares of users that gain and lose, and the spread of the change in accuracy."""
    numbers = table(measured)
    shown = numbers[numbers.scheme == SCHEME]
    x = np.arange(len(shown))
    with figure_style():
        figure = new_figure()
        shares, spread = figure.subplots(1, 2, width_ratios=(1, 1.25))
        shares.bar(x, 100 * shown.helped, color=HELPED, width=0.7, label="helped")
        shares.bar(x, -100 * shown.hurt, color=HURT, width=0.7, label="hurt")
        shares.axhline(0, color=COLOURS["original"], linewidth=0.8)
        shares.set(ylabel="fraction of users (%)", ylim=(-100, 100))
        shares.set_yticks([-100, -50, 0, 50, 100], ["100", "50", "0", "50", "100"])
        spread.vlines(x, 100 * shown.p5, 100 * shown.p95, color=HELPED, linewidth=1.2, label="p5 to p95")
        spread.vlines(x, 100 * shown.p25, 100 * shown.p75, color=HELPED, linewidth=5, label="p25 to p75")
        spread.plot(x, 100 * shown["median"], "o", color="white", mec=HELPED, markersize=5, label="median", zorder=3)
        spread.plot(x, 100 * shown.worst, "x", color=HURT, markersize=6, label="worst user")
        spread.axhline(0, color=COLOURS["original"], linewidth=0.8)
        spread.set_ylabel("change of a user's accuracy (points)")
        names = ["policy" if exit == "policy" else f"{exit}" for exit in shown.exit]
        for axes in (shares, spread):
            axes.set_xticks(x, names)
            axes.set_xlabel("exit")
            axes.grid(visible=False, axis="x")
        shares.legend(loc="lower left", ncols=2)
        figure.legend(*spread.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(f"{measured.study.title}, {SCHEME}", fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(numbers))


def table(measured: Measured) -> pd.DataFrame:
    """Return a row per scheme and early exit, and one for the policy in force; changes in accuracy, in [-1, 1]."""
    exits = measured.exits[measured.exits.whole & (measured.exits.exit < measured.network.num_exits)]
    changes = exits.assign(change=exits.after - exits.before, exit=exits.exit.astype(str))
    parts = [changes[["scheme", "exit", "change"]]]
    for scheme in measured.study.schemes:
        users = rule_outcomes(measured, scheme)["controlled"]
        parts.append(pd.DataFrame({"scheme": scheme, "exit": "policy", "change": users.accuracy - users.original}))
    groups = pd.concat(parts).groupby(["scheme", "exit"]).change
    quantiles = {f"p{percent}": groups.quantile(percent / 100) for percent in (5, 25, 75, 95)}
    summary = {"median": groups.median(), "worst": groups.min(), "mean": groups.mean(), "users": groups.size()}
    shares = {"helped": groups.agg(lambda c: (c > 1e-9).mean()), "hurt": groups.agg(lambda c: (c < -1e-9).mean())}
    return pd.DataFrame({**shares, **quantiles, **summary}).reset_index()


def _claims(numbers: pd.DataFrame) -> tuple[Claim, ...]:
    shown = {"0": "exit 0", "policy": "policy in force"}
    rows: Any = numbers.itertuples()
    return tuple(
        Claim(
            claim=f"{shown[row.exit]}, {shown_name(row.scheme)}",
            paper="not given",
            ours=f"{row.helped:.0%} helped, {row.hurt:.0%} hurt; 5th percentile {100 * row.p5:+.1f}, worst "
            f"{100 * row.worst:+.1f} points",
        )
        for row in rows
        if row.scheme != "self-supervision" and row.exit in shown
    )
