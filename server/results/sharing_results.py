"""What sharing came to: who shared, and how the merged exits do on users who never took part.

Pure functions from the rows of sharing.parquet and held_out.parquet to what summary.json holds. Every user counts the
same. Accuracies lie in [0, 1].
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persephonee.server.results.summary import LeftOut
from persephonee.server.results.table_schemas import Row, RunTables


@dataclass(frozen=True, kw_only=True)
class SharingSummary:
    """What became of the request for exits in the last round."""

    shared: int
    not_permitted: int
    held_back: int
    """Clients that had nothing to share: training had improved no exit, or a value did not fit."""
    refused: int
    exits: tuple[int, ...]
    """For each early exit, how many clients sent it."""
    refusals: tuple[LeftOut, ...]
    """What was refused in any round, and why."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRound:
    """One round in the curve over rounds."""

    round: int
    """0 is the model that the run began with."""
    users: int
    accuracy: tuple[float | None, ...]
    """Of each exit as merged, without personalisation, mean over users; the last exit at the end."""


@dataclass(frozen=True, kw_only=True)
class HeldOutExit:
    """One exit on held-out users: as the run began and as it ended, before and after their own personalisation."""

    exit: int
    is_last: bool
    initial_before: float | None
    initial_after: float | None
    merged_before: float | None
    merged_after: float | None


@dataclass(frozen=True, kw_only=True)
class HeldOutSummary:
    """The merged exits on held-out users."""

    users: int
    rounds: tuple[HeldOutRound, ...]
    exits: tuple[HeldOutExit, ...]
    left_out: tuple[LeftOut, ...]


def summarise_sharing(tables: RunTables) -> SharingSummary | None:
    """Return what became of the request for exits, None where the run asked for none."""
    rows = tables.sharing.to_pylist()
    if not rows:
        return None
    last = [row for row in rows if row["round"] == max(row["round"] for row in rows)]
    kinds = Counter(row["outcome"].split(":")[0] for row in last)
    sent = Counter(exit for row in last for exit in row["exits"] or ())
    num_exits = max((row["exit"] for row in tables.exits.to_pylist()), default=0)
    refused = [row for row in rows if row["outcome"].startswith("refused")]
    return SharingSummary(
        shared=kinds["shared"],
        not_permitted=kinds["not permitted"],
        held_back=kinds["held back"],
        refused=kinds["refused"],
        exits=tuple(sent[exit] for exit in range(num_exits)),
        refusals=tuple(
            LeftOut(client_id=row["client_id"], status=f"round {row['round']}: {row['outcome']}") for row in refused
        ),
    )


def summarise_held_out(tables: RunTables) -> HeldOutSummary | None:
    """Return how the exits do on held-out users, None where the run has none."""
    rows = tables.held_out.to_pylist()
    if not rows:
        return None
    ok = [row for row in rows if row["status"] == "ok"]
    left_out = {row["client_id"]: row["status"] for row in rows if row["status"] != "ok"}
    numbers = sorted({row["round"] for row in ok})
    last = max((row["exit"] for row in ok), default=-1)
    paths = range(last + 1)

    def mean(number: int, exit: int, stage: str) -> float | None:
        return _mean([r for r in ok if (r["round"], r["exit"], r["stage"]) == (number, exit, stage)])

    return HeldOutSummary(
        users=len({row["client_id"] for row in ok}),
        rounds=tuple(
            HeldOutRound(
                round=number,
                users=len({row["client_id"] for row in ok if row["round"] == number}),
                accuracy=tuple(mean(number, exit, "before") for exit in paths),
            )
            for number in numbers
        ),
        exits=tuple(
            HeldOutExit(
                exit=exit,
                is_last=exit == last,
                initial_before=mean(0, exit, "before"),
                initial_after=mean(0, exit, "after"),
                merged_before=mean(numbers[-1], exit, "before"),
                merged_after=mean(numbers[-1], exit, "after"),
            )
            for exit in paths
        ),
        left_out=tuple(LeftOut(client_id=name, status=status) for name, status in sorted(left_out.items())),
    )


def _mean(rows: Sequence[Row]) -> float | None:
    known = [row["accuracy"] for row in rows if row["accuracy"] is not None]
    return float(np.mean(known)) if known else None
