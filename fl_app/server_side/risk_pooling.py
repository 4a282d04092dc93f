"""The server's side of the federated rule: clients' risk curves become a pool, whatever order they came in."""

from collections.abc import Mapping
from dataclasses import replace

from persephonee.clients.personalisation.reports import PersonalisationReport, Stage
from persephonee.clients.personalisation.risk.risk_control import pool_curves
from persephonee.clients.personalisation.risk.risk_curves import RiskCurve
from persephonee.clients.personalisation.risk.risk_pools import RiskPool


def pools_of(
    curves: Mapping[str, tuple[bool, RiskCurve]], promise: tuple[float, float] | None
) -> list[tuple[RiskPool, frozenset[str]]]:
    """Return a pool of the curves with labels and one of those without, each with the clients whose curves they are.

    A pool on which nothing can be promised is of no use to a client, and is none of them.

    Args:
        curves: by client id, each with whether all its labels were known.
        promise: the tolerance and delta; None where curves are not pooled.
    """
    if promise is None:
        return []
    groups = [{name: curve for name, (labelled, curve) in curves.items() if labelled is of} for of in (True, False)]
    pools = [(pool_curves(list(of.values()), "federated", [promise]), frozenset(of)) for of in groups if len(of) > 1]
    return [(pool, members) for pool, members in pools if pool.certificates]


def with_policy_of(first: PersonalisationReport, second: PersonalisationReport) -> PersonalisationReport:
    """Return the report of a round, with what its second report says of the policy that was chosen again."""
    return replace(
        first,
        rule=second.rule,
        threshold=second.threshold,
        accuracy_after=second.accuracy_after,
        mean_macs=second.mean_macs,
        seconds_personalise=first.seconds_personalise + second.seconds_personalise,
        exit_metrics=(*first.exits_at(Stage.BEFORE), *second.exits_at(Stage.AFTER)),
    )
