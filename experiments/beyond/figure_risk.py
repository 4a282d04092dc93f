"""Beyond the paper: the three rules that choose a policy, by what users lose under them and what that costs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from persephonee.clients.personalisation.risk.risk_control import choose_candidate, pool_curves
from persephonee.clients.personalisation.risk.risk_curves import RiskCurve
from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.risk_tables import curve_of
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "What a policy promises"
NOTE = """\
The drop is that of the policy against the last exit, on test samples. The rule `paper` fits the user's own calibration
samples; `controlled` and `federated` keep a drop of 1 point by other users' risk curves: of half of the users, drawn
anew twenty times, and of all users in a run. Where nothing can be promised the original network answers.
"""
STUDIES = ("resnet50", "mobilenet_v2", "qmnist", "writers")
RULES = ("paper", "controlled", "federated")
REDRAWS = 20
SETTINGS = PersonalisationSettings()


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
                    label=f"{row.rule}, {scheme}",
                )  # fmt: skip
        axes.axhline(100 * SETTINGS.drop_tolerance, linestyle="--", linewidth=1.0, color=COLOURS["original"])
        axes.set(xlabel="cost of the original's (%)", ylabel="drop against the last exit (points)")
        axes.legend()
        figure.suptitle(f"{measured.study.title}; dashed: the tolerance", fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(numbers))


def table(measured: Measured) -> pd.DataFrame:
    """Return a row per scheme and rule.

    Returns:
        scheme, rule, users, the mean drop and its 95 % bootstrap interval in points, the share of users beyond the
        tolerance, the mean cost over the original network's, and the share of users whom the original network serves.
    """
    found = []
    for scheme in (name for name in measured.study.schemes if name != "self-supervision"):
        policies = measured.policies[measured.policies.scheme == scheme].sort_values("user")
        risks = measured.risks[measured.risks.scheme == scheme]
        users = [rows for _, rows in risks.groupby("user", sort=True)]
        drops = (policies.accuracy_original - policies.accuracy_after).to_numpy()
        costs = (policies.mean_macs / policies.original_macs).to_numpy()
        kept = policies[[f"kept_{exit}" for exit in range(measured.network.num_exits)]].to_numpy().any(axis=1)
        outcomes = {"paper": np.array([drops, costs, ~kept]), **_by_pools(users)}
        found += [{"scheme": scheme, "rule": rule, **_summary(outcomes[rule])} for rule in RULES]
    return pd.DataFrame(found)


def _by_pools(users: Sequence[pd.DataFrame]) -> dict[str, NDArray[np.float64]]:
    """Return drop, cost and whether the original network answers, [3, users], with a pool of half and of all users."""
    believed, lost = ([curve_of(rows, column) for rows in users] for column in ("believed", "lost"))
    everyone, rng, promises = np.arange(len(users)), np.random.default_rng(0), [_promise()]
    if len(users) < 4:
        nothing = np.array([np.zeros(len(users)), np.ones(len(users)), np.ones(len(users))])
        return {"controlled": nothing, "federated": nothing}
    federated = _outcomes(users, believed, everyone, pool_curves(believed, "federated", promises))
    drawn = []
    for _ in range(REDRAWS):
        order = rng.permutation(everyone)
        held_out, new = order[: len(users) // 2], order[len(users) // 2 :]
        pool = pool_curves([believed[i] for i in held_out], "controlled", promises, judged=[lost[i] for i in held_out])
        outcomes = np.full((3, len(users)), np.nan)
        outcomes[:, new] = _outcomes(users, believed, new, pool)
        drawn.append(outcomes)
    # every user is new in some redraw, or stands for nobody
    means = np.nanmean(np.array(drawn)[:, :, ~np.isnan(drawn).all(axis=(0, 1))], axis=0)
    return {"controlled": means, "federated": federated}


def _outcomes(
    users: Sequence[pd.DataFrame], curves: Sequence[RiskCurve], chosen: NDArray[np.int64], pool: RiskPool
) -> NDArray[np.float64]:
    found, certificate = [], pool.certificate(*_promise())
    for i in chosen:
        candidate = None if certificate is None else choose_candidate(curves[i], pool, certificate)
        rows = users[i]
        row = None if candidate is None else rows[(rows.candidate == candidate) & (rows.half == 0)].iloc[0]
        found.append((0.0, 1.0, 1.0) if row is None else (row.test_drop, row.test_cost, 0.0))
    return np.array(found).T


def _promise() -> tuple[float, float]:
    return SETTINGS.drop_tolerance, SETTINGS.delta


def _summary(outcomes: NDArray[np.float64]) -> dict[str, float]:
    drops, costs, original = outcomes.astype(np.float64)
    rng = np.random.default_rng(0)
    means = drops[rng.integers(len(drops), size=(2000, len(drops)))].mean(axis=1)
    low, high = 100 * np.quantile(means, (0.025, 0.975))
    return {
        "users": len(drops),
        "drop_points": 100 * drops.mean(),
        "low": low,
        "high": high,
        "beyond": (drops > SETTINGS.drop_tolerance + 1e-9).mean(),
        "cost": costs.mean(),
        "original": original.mean(),
    }


def _claims(numbers: pd.DataFrame) -> tuple[Claim, ...]:
    rows: Iterable[Any] = numbers.itertuples()
    return tuple(
        Claim(
            claim=f"policies lose at most 1 point, {row.rule}, {row.scheme}",
            paper="a drop within the tolerance",
            ours=f"{row.drop_points:.2f} points ({row.low:.2f} to {row.high:.2f}, {row.users} users), "
            f"{row.beyond:.0%} of users beyond it, at {row.cost:.0%} of the cost",
            same_direction=bool(row.drop_points <= 100 * SETTINGS.drop_tolerance),
        )
        for row in rows
    )
