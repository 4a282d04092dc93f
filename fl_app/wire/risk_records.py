"""Risk curves on their way up, and the pool of them on its way down: small whole numbers, checked key by key.

For seven early exits or fewer a record takes at most 2 KB each way, however many clients there are: a pool holds means.
"""

import numpy as np
from flwr.app import MetricRecord
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.risk.risk_curves import FEWEST_SAMPLES, RiskCurve, candidate_policies
from persephonee.clients.personalisation.risk.risk_pools import Certificate, RiskPool
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire.value_kinds import shown

LARGEST = 2**40
"""The most that any of these numbers may be; what it may be beside the others, the curve and the pool know."""


def curve_record(curve: RiskCurve) -> MetricRecord | None:
    """Return what leaves a client of its risk curve, None where a half of it has too few samples to leave."""
    if min(curve.samples) < FEWEST_SAMPLES:
        return None
    return MetricRecord(
        {
            "excess": curve.excess.flatten().tolist(),  # both halves one after the other, in tenths of a sample
            "samples": list(curve.samples),  # of either half
            "costs": curve.costs.tolist(),  # means, in thousandths of the original network's
        }
    )


def curve_of(record: object, num_exits: int | None) -> RiskCurve:
    """Return the curve in a client's reply.

    Args:
        record: what came under the name "curve".
        num_exits: M, None where it is not known.

    Raises:
        WireError: it holds something else, an impossible count, or a sum over too few samples.
    """
    lists = _lists("curve", record, ("excess", "samples", "costs"))
    count = len(lists["costs"]) if num_exits is None else len(candidate_policies(num_exits))
    for name, length in (("excess", 2 * count), ("samples", 2), ("costs", count)):
        if len(lists[name]) != length:
            raise WireError(f"curve/{name}: expected {length} whole numbers, got {len(lists[name])}.")
    first, second = (int(number) for number in lists["samples"])
    if min(first, second) < FEWEST_SAMPLES:
        raise WireError(f"curve/samples: sums over {min(first, second)} samples, expected {FEWEST_SAMPLES} or more.")
    try:
        return RiskCurve(excess=lists["excess"].reshape(2, -1), samples=(first, second), costs=lists["costs"])
    except ClientSettingsError as error:
        raise WireError(f"curve: {error}") from None


def pool_record(pool: RiskPool) -> MetricRecord:
    """Return what clients are sent of a federation's pool, which has one certificate."""
    (certificate,) = pool.certificates
    return MetricRecord(
        {
            "risks": pool.risks.tolist(),  # means, in hundred-thousandths of a sample
            "costs": pool.costs.tolist(),  # means, in thousandths of the original network's
            "users": pool.users,
            "tolerance": certificate.tolerance,
            "delta": certificate.delta,
            "strength": certificate.strength,
            "level": certificate.level,
        }
    )


def pool_of(record: object, num_exits: int) -> RiskPool:
    """Return the pool in a server's message.

    Raises:
        WireError: it holds something else, or an impossible number.
    """
    numbers = ("users", "tolerance", "delta", "strength", "level")
    lists = _lists("pool", record, ("risks", "costs"), numbers)
    assert isinstance(record, MetricRecord)
    for name, values in lists.items():
        if len(values) != len(candidate_policies(num_exits)):
            raise WireError(f"pool/{name}: expected {len(candidate_policies(num_exits))} numbers, got {len(values)}.")
    users, *of_certificate = (record[name] for name in numbers)
    try:
        certificate = Certificate(**dict(zip(numbers[1:], of_certificate, strict=True)))  # type: ignore[arg-type]
        return RiskPool(rule="federated", users=users, certificates=(certificate,), **lists)  # type: ignore[arg-type]
    except ClientSettingsError as error:
        raise WireError(f"pool: {error}") from None


def _lists(
    name: str, record: object, lists: tuple[str, ...], numbers: tuple[str, ...] = ()
) -> dict[str, NDArray[np.int64]]:
    if not isinstance(record, MetricRecord):
        raise WireError(f"{name}: expected a MetricRecord, got {type(record).__name__}.")
    if unknown := sorted(set(record) ^ {*lists, *numbers}):
        raise WireError(f"{name}/{unknown[0][:40]} is missing or may not travel.")
    found = {}
    for key in lists:
        values = record[key]
        if not isinstance(values, list) or any(type(n) is not int or abs(n) > LARGEST for n in values):
            raise WireError(f"{name}/{key}: expected whole numbers, got {shown(values)}.")
        found[key] = np.array(values, dtype=np.int64)
    return found
