"""Pools of other users' risk curves: small enough to ship with a model (Sec. 3.1.4)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.risk.risk_curves import COST_UNIT, UNIT, candidate_policies

PoolRule = Literal["controlled", "federated"]
RISK_UNIT = 100_000
"""Mean losses are whole numbers of 1 / RISK_UNIT of a sample."""
MOST_USERS = 10**9
MOST_CERTIFICATES = 64

BEFORE = "before"
"""The stage of a pool of users who have not personalised; the others are called as their schedule."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What can be promised on the users of a pool.

    Attributes:
        tolerance: the mean loss against the last exit that is kept, in [0, 1].
        delta: the chance over the users of the pool that it is not kept, in (0, 1); of no meaning to `federated`.
        strength: how many samples the pool counts for beside a user's own, at least 1.
        level: the largest shrunken risk that a candidate may have, in [-1, 1].
    """

    tolerance: float
    delta: float
    strength: int
    level: float

    def __post_init__(self) -> None:
        numbers = (self.tolerance, self.delta, self.level)
        fits = all(type(n) in (int, float) for n in numbers) and type(self.strength) is int
        if not fits or not (0 <= self.tolerance <= 1 and 0 < self.delta < 1 and abs(self.level) <= 1):
            raise _refused(f"a certificate of tolerance {self.tolerance!r} and delta {self.delta!r}")
        if not 1 <= self.strength <= MOST_USERS:
            raise _refused(f"a strength of {self.strength}")


@dataclass(frozen=True, kw_only=True, eq=False)
class RiskPool:
    """What other users' curves come to.

    Attributes:
        rule: that certified it.
        risks: their mean loss over all samples in `RISK_UNIT`ths, int64 [C].
        costs: their mean cost in `COST_UNIT`ths of the original network's, each user once, int64 [C].
        users: how many they are.
        certificates: what can be promised on them; none where they are too few or lose too much.

    Raises:
        ClientSettingsError: a number is impossible; the sentence says which.
    """

    rule: PoolRule
    risks: NDArray[np.int64]
    costs: NDArray[np.int64]
    users: int
    certificates: tuple[Certificate, ...]

    def __post_init__(self) -> None:
        if self.rule not in get_args(PoolRule):
            raise _refused(f"the rule {self.rule!r}")
        if self.risks.shape != self.costs.shape or self.risks.ndim != 1:
            raise _refused(f"{self.risks.shape} risks for {self.costs.shape} costs")
        if type(self.users) is not int or not 2 <= self.users <= MOST_USERS:
            raise _refused(f"{self.users} users")
        if (np.abs(self.risks) > RISK_UNIT).any() or (self.costs < 0).any() or (self.costs > UNIT * COST_UNIT).any():
            raise _refused("a mean loss or cost out of range")

    def certificate(self, tolerance: float, delta: float) -> Certificate | None:
        """Return the most generous certificate that keeps this tolerance with this delta; None where there is none."""
        fitting = [c for c in self.certificates if c.tolerance <= tolerance + 1e-12 and c.delta <= delta + 1e-12]
        return max(fitting, key=lambda c: (c.tolerance, c.delta), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return what a model keeps of it."""
        return {
            "rule": self.rule,
            "risks": self.risks.tolist(),
            "costs": self.costs.tolist(),
            "users": self.users,
            "certificates": [asdict(certificate) for certificate in self.certificates],
        }

    @classmethod
    def from_json(cls, values: Any, num_exits: int) -> Self:
        """Return the pool that `to_json` wrote, for a network of M early exits.

        Raises:
            ClientSettingsError: it holds something else, or is of another network.
        """
        if not isinstance(values, dict) or values.keys() != {"rule", "risks", "costs", "users", "certificates"}:
            raise _refused("other keys")
        count = len(candidate_policies(num_exits))
        arrays = {}
        for name in ("risks", "costs"):
            numbers = values[name]
            if not isinstance(numbers, list) or len(numbers) != count or any(type(n) is not int for n in numbers):
                raise _refused(f"other {name} than {count} whole numbers")
            # beyond 64 bits numpy would raise
            arrays[name] = np.array([max(min(n, 2**40), -(2**40)) for n in numbers], dtype=np.int64)
        made = values["certificates"]
        if not isinstance(made, list) or len(made) > MOST_CERTIFICATES:
            raise _refused("other certificates than a short list")
        try:
            certificates = tuple(Certificate(**one) for one in made)
        except TypeError:
            raise _refused("a certificate of other keys") from None
        return cls(rule=values["rule"], users=values["users"], certificates=certificates, **arrays)


def pool_name(stage: str, labelled: bool, reference: str = "last-exit") -> str:
    """Return what a model calls a pool: of users at this stage, with labels or without, against this reference."""
    # who has not personalised has no other last exit than the original
    against = "-original" if reference == "original" and stage != BEFORE else ""
    return f"{stage}-{'labels' if labelled else 'none'}{against}"


def shipped_pool(
    pools: Mapping[str, Any], stage: str, labelled: bool, num_exits: int, reference: str = "last-exit"
) -> RiskPool | None:
    """Return the pool that ships with a model, None where it has none of this kind.

    Raises:
        ClientSettingsError: the model's pool is damaged.
    """
    values = pools.get(pool_name(stage, labelled, reference))
    return None if values is None else RiskPool.from_json(values, num_exits)


def _refused(what: str) -> ClientSettingsError:
    return ClientSettingsError(f"a pool of risk curves with {what} is impossible: calibrate the model again.")
