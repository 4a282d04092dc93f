"""What the policies of a run promise, and whether they kept it on the test samples: per run, over users."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PROMISING = ("controlled", "federated")
"""The rules that promise something; the paper's does not, and the original network loses nothing."""


@dataclass(frozen=True, kw_only=True)
class PromiseSummary:
    """The rules over all users of a round, against what was measured on their test samples.

    Accuracies are fractions. The drop that is measured is against the original network; what is promised may be
    against the last exit, which counts on the users' class frequencies.
    """

    rules: dict[str, int]
    """How many users' policy each rule chose; "original: ..." where nothing could be promised."""
    tolerance: float
    """The mean drop that is promised."""
    reference: str
    """What it is promised against: "last-exit" or "original"."""
    delta: float
    """The chance that the controlled rule misses it."""
    promised: int
    """Users whose policy a rule with a promise chose."""
    mean_drop: float | None
    """Of these users."""
    drop_error: float | None
    """Standard error of this mean; None for fewer than two users."""
    beyond: int
    """Of these users, those whose own drop on their test samples is above the tolerance, chance included."""


def summarise_promise(ok: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> PromiseSummary | None:
    """Return what the round's policies promise; None for tables of versions that did not say which rule chose.

    Args:
        ok: rows of clients.parquet of one round with the status "ok".
        config: of the run, with the keys drop-tolerance and delta, and drop-reference, which former runs lack.
    """
    rules = Counter(str(row["rule"]) for row in ok if row.get("rule"))
    tolerance, delta = (config.get(key) for key in ("drop-tolerance", "delta"))
    if not rules or not isinstance(tolerance, int | float) or not isinstance(delta, int | float):
        return None
    drops = np.array(
        [row["accuracy_original"] - row["accuracy_after"] for row in ok if row.get("rule") in PROMISING], dtype=float
    )
    return PromiseSummary(
        rules=dict(sorted(rules.items())),
        tolerance=float(tolerance),
        reference=str(config.get("drop-reference", "last-exit")),
        delta=float(delta),
        promised=len(drops),
        mean_drop=float(drops.mean()) if len(drops) else None,
        drop_error=float(drops.std(ddof=1) / math.sqrt(len(drops))) if len(drops) > 1 else None,
        beyond=int((drops > tolerance + 1e-9).sum()),
    )


def promise_text(promise: PromiseSummary) -> str:
    """Return in a sentence or two which rule chose the policies, what it promises, and what was measured."""
    users = sum(promise.rules.values())
    size = f"{100 * promise.tolerance:g}"
    points = f"{size} point" if size == "1" else f"{size} points"
    against = "the original network" if promise.reference == "original" else "the last exit"
    promises = {
        "controlled": f"with probability {1 - promise.delta:g}, users like these lose at most {points} on average "
        f"against {against}",
        "federated": f"a user like these is expected to lose at most {points} against {against}",
        "paper": "no promise",
    }
    chosen = "; ".join(
        f"{rule.partition(': ')[2] or rule}, so that the original network answers (for {count} of {users} users)"
        if rule not in promises
        else f"the rule {rule} chose the policy of {count} of {users} users: {promises[rule]}"
        for rule, count in promise.rules.items()
    )
    text = f"What is promised: {chosen}."
    if promise.mean_drop is None:
        return text
    error = f" (standard error {100 * promise.drop_error:.2f})" if promise.drop_error is not None else ""
    drop = 100 * promise.mean_drop
    change = f"lost {drop:.2f} points" if drop >= 0 else f"gained {-drop:.2f} points"
    return (
        f"{text} Measured on their test samples, {promise.promised} users with a promise {change} on average against "
        f"the original network{error}, and {promise.beyond} of them lost more than {points}."
    )
