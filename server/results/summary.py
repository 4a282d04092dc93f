"""What summary.json holds: the headline numbers of a run, as results.py derives them from the tables.

Accuracies, shares and rates lie in [0, 1]; costs are MACs per sample; None stands for what no user gave a number for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from persephonee.server.results.promise import PromiseSummary
    from persephonee.server.results.sharing_results import HeldOutSummary, SharingSummary

# Two accuracies closer than this are the same: they are ratios of counts, computed in float.
SAME = 1e-9


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a number spreads over users; percentiles are interpolated linearly."""

    users: int
    mean: float
    median: float
    p05: float
    p25: float
    p75: float
    p95: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Return the spread of the values that are there, None when there are none."""
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        if not len(known):
            return None
        p05, p25, median, p75, p95 = (float(value) for value in np.percentile(known, [5, 25, 50, 75, 95]))
        return cls(users=len(known), mean=float(known.mean()), median=median, p05=p05, p25=p25, p75=p75, p95=p95)


@dataclass(frozen=True, kw_only=True)
class Change:
    """The fractions of users for whom a number rose, fell and stayed; they add up to 1."""

    users: int
    helped: float
    hurt: float
    unchanged: float

    @classmethod
    def between(cls, pairs: Iterable[tuple[float | None, float | None]]) -> "Change | None":
        """Return the change over the (before, after) pairs that are whole, None when there are none."""
        gains = np.array([after - before for before, after in pairs if before is not None and after is not None])
        if not len(gains):
            return None
        helped, hurt = float((gains > SAME).mean()), float((gains < -SAME).mean())
        unchanged = float((np.abs(gains) <= SAME).mean())
        return cls(users=len(gains), helped=helped, hurt=hurt, unchanged=unchanged)


@dataclass(frozen=True, kw_only=True)
class ExitSummary:
    """One exit over all users."""

    exit: int
    """From 0; the last exit has the largest number."""
    is_last: bool
    """True for the original classifier."""
    macs: float | None
    """MACs per sample of a network with this exit alone: the backbone up to it and its head."""
    cost_fraction: float | None
    """`macs` over the original network's; 1 at the last exit."""
    accuracy_before: Spread | None
    accuracy_after: Spread | None
    change: Change | None
    """Of accuracy, from before to after."""
    reaches_original: float | None
    """Fraction of users for whom this exit, after, is at least as accurate as their last exit."""
    kept: float | None
    """Fraction of users whose policy keeps this exit."""
    rolled_back: int
    """Users for whom the new exit was worse on their calibration part, so that the earlier weights stayed."""
    exit_rate_before: float | None
    """Mean fraction of samples that leave here."""
    exit_rate_after: float | None


@dataclass(frozen=True, kw_only=True)
class PolicySummary:
    """The whole early-exit policy over all users."""

    accuracy_original: Spread | None
    accuracy_before: Spread | None
    accuracy_after: Spread | None
    change: Change | None
    """Of accuracy under the policy, from before to after."""
    against_original: Change | None
    """Of accuracy, from the last exit alone to the policy after."""
    mean_macs_before: float | None
    mean_macs_after: float | None
    original_macs: float | None
    cost_fraction_before: Spread | None
    """Each user's mean MACs over the original network's; the heads of the exits passed on the way count too."""
    cost_fraction_after: Spread | None
    threshold: Spread | None
    threshold_counts: dict[str, int]
    """How many users each threshold was chosen for."""
    exits_kept: Spread | None
    """Early exits per user, out of M."""


@dataclass(frozen=True, kw_only=True)
class UserCounts:
    """What became of the clients that were asked."""

    asked: int
    ok: int
    too_small: int
    refused: int
    failed: int
    """Errors, clients that never answered, and any other status."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A client without numbers, and why."""

    client_id: str
    status: str


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """A user some of whose exits kept their earlier weights."""

    client_id: str
    exits: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RoundPoint:
    """One round in a curve over rounds: means over users."""

    round: int
    users: int
    accuracy_original: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    cost_fraction: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The headline numbers of a run: its last round, and the curve over rounds."""

    round: int
    num_exits: int
    """M, the early exits; 0 when no user gave a result."""
    counts: UserCounts
    labels: dict[str, int]
    """How many users trained with which labels ("all", "none", "0.25")."""
    num_train: Spread | None
    num_test: Spread | None
    policy: PolicySummary
    exits: tuple[ExitSummary, ...]
    bytes_up: Spread | None
    bytes_down: Spread | None
    seconds_personalise: Spread | None
    left_out: tuple[LeftOut, ...]
    rolled_back: tuple[RolledBack, ...]
    rounds: tuple[RoundPoint, ...]
    sharing: "SharingSummary | None" = None
    """None where the run asked for no exits."""
    held_out: "HeldOutSummary | None" = None
    """None where everybody took part."""
    promise: "PromiseSummary | None" = None
    """Which rule chose the policies, and what it promises; None in runs of versions that did not say."""
