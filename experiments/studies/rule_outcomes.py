"""What each rule's policy would have given each user of a study, on test samples that chose nothing.

`paper` is the policy of the measured round. The other rules choose among the candidates of `risk_tables`, with pools of
the study's own users: `controlled` with half of them, drawn anew twenty times, for those who are not among them, and
`federated` with all of them, as in a run.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from persephonee.clients.personalisation.risk.risk_control import choose_candidate, pool_curves
from persephonee.clients.personalisation.risk.risk_curves import RiskCurve, candidate_policies
from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.risk_tables import curve_of

RULES = ("paper", "controlled", "federated")
REDRAWS = 20
FEWEST_USERS = 4
SETTINGS = PersonalisationSettings()
PROMISE = (SETTINGS.drop_tolerance, SETTINGS.delta)
COLUMNS = ("accuracy", "cost", "latency", "is_original")


def rule_outcomes(measured: Measured, scheme: str, reference: str = "last exit") -> dict[str, pd.DataFrame]:
    """Return what each rule gives, a row per user in the users' order.

    Args:
        measured: of a study.
        scheme: what the exits learned from, by the figures' name.
        reference: what the loss is counted against, one of `risk_tables.REFERENCES`; the paper's rule knows one only,
            and is left out for the other.

    Returns:
        By the rule's name: `accuracy` of the policy, `cost` and `latency` as fractions of the original's, `is_original`
        where no early exit answers, `reference` accuracy, and `original` accuracy; means over redraws.
    """
    rows = measured.risks[(measured.risks.scheme == scheme) & (measured.risks.reference == reference)]
    by_user = dict(tuple(rows.groupby("user", sort=True)))
    users = [_with_latency(measured, table) for table in by_user.values()]
    exits = measured.exits[(measured.exits.scheme == scheme) & measured.exits.whole]
    last = exits[exits.exit == measured.network.num_exits].set_index("user").loc[list(by_user)]
    fallback = last.after.to_numpy()
    accuracies = {"original": last.before.to_numpy(), "last exit": fallback}
    outcomes = _by_pools(users, fallback)
    if reference == "last exit":
        outcomes = {"paper": _by_the_paper(measured, scheme), **outcomes}
    return {
        rule: pd.DataFrame(dict(zip(COLUMNS, values, strict=True)), index=list(by_user)).assign(
            reference=accuracies[reference], original=accuracies["original"]
        )
        for rule, values in outcomes.items()
    }


def _with_latency(measured: Measured, table: pd.DataFrame) -> pd.DataFrame:
    """Return a user's candidates with the mean latency of a sample, as a fraction of the original's."""
    num_exits = measured.network.num_exits
    kept = np.array([[exit in p.exits_in_use for exit in range(num_exits)] for p in candidate_policies(num_exits)])
    rates = table[[f"rate_{exit}" for exit in range(num_exits + 1)]].to_numpy()
    return table.assign(test_latency=_latency(measured, rates, kept[table.candidate.to_numpy()]))


def _latency(measured: Measured, rates: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return mean latencies over the original's: a sample pays for the stages and the heads in use on its way."""
    latency = measured.latency.sort_values("exit")
    heads = np.c_[kept, np.ones(len(kept))] * latency.head_ms.to_numpy()
    leaving = np.cumsum(latency.stage_ms.to_numpy()) + np.cumsum(heads, axis=1)
    mean: NDArray[np.float64] = (rates * leaving).sum(axis=1) / float(latency.stage_ms.sum())
    return mean


def _by_the_paper(measured: Measured, scheme: str) -> NDArray[np.float64]:
    table = measured.policies[measured.policies.scheme == scheme].sort_values("user")
    num_exits = measured.network.num_exits
    kept = table[[f"kept_{exit}" for exit in range(num_exits)]].to_numpy(dtype=bool)
    rates = table[[f"rate_{exit}" for exit in range(num_exits + 1)]].to_numpy(dtype=float)
    costs = (table.mean_macs / table.original_macs).to_numpy()
    return np.array([table.accuracy_after, costs, _latency(measured, rates, kept), ~kept.any(axis=1)], dtype=float)


def _by_pools(users: Sequence[pd.DataFrame], fallback: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the columns of each rule, [4, users]."""
    believed, lost = ([curve_of(rows, column) for rows in users] for column in ("believed", "lost"))
    everyone, rng = np.arange(len(users)), np.random.default_rng(0)
    if len(users) < FEWEST_USERS:
        nothing = _of_original(fallback)
        return {"controlled": nothing, "federated": nothing}
    drawn = np.full((REDRAWS, len(COLUMNS), len(users)), np.nan)
    for redraw in drawn:
        order = rng.permutation(everyone)
        held_out, new = order[: len(users) // 2], order[len(users) // 2 :]
        pool = pool_curves([believed[i] for i in held_out], "controlled", [PROMISE], [lost[i] for i in held_out])
        redraw[:, new] = _outcomes(users, believed, new, pool, fallback)
    # a user who is new in no redraw, of very few, is served by all users' pool
    federated = _outcomes(users, believed, everyone, pool_curves(believed, "federated", [PROMISE]), fallback)
    is_new = ~np.isnan(drawn[:, 0]).all(axis=0)
    controlled = federated.copy()
    controlled[:, is_new] = np.nanmean(drawn[:, :, is_new], axis=0)
    return {"controlled": controlled, "federated": federated}


def _of_original(fallback: NDArray[np.float64]) -> NDArray[np.float64]:
    ones = np.ones(len(fallback))
    return np.array([fallback, ones, ones, ones])


def _outcomes(
    users: Sequence[pd.DataFrame],
    curves: Sequence[RiskCurve],
    chosen: NDArray[np.int64],
    pool: RiskPool,
    fallback: NDArray[np.float64],
) -> NDArray[np.float64]:
    found, certificate = _of_original(fallback[chosen]), pool.certificate(*PROMISE)
    for column, i in enumerate(chosen):
        candidate = None if certificate is None else choose_candidate(curves[i], pool, certificate)
        if candidate is not None:
            rows = users[i]
            row = rows[(rows.candidate == candidate) & (rows.half == 0)].iloc[0]
            found[:, column] = (row.test_accuracy, row.test_cost, row.test_latency, 0.0)
    return found
