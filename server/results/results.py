"""The arithmetic from the tables of a run to its headline numbers (summary.json).

Pure functions: rows in, the dataclasses of results_summary.py out. Every user counts the same, however many samples
they have: the paper reports users, not samples (Fig. 3b).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from persephonee.server.errors import ServerError
from persephonee.server.results.promise import summarise_promise
from persephonee.server.results.sharing_results import summarise_held_out, summarise_sharing
from persephonee.server.results.summary import (
    Change,
    ExitSummary,
    LeftOut,
    PolicySummary,
    RolledBack,
    RoundPoint,
    Spread,
    Summary,
    UserCounts,
)
from persephonee.server.results.table_schemas import Row, RunTables


def summarise(tables: RunTables, config: Mapping[str, Any] = MappingProxyType({})) -> Summary:
    """Return the summary of the last completed round, with the curve over all rounds.

    Args:
        tables: of the run.
        config: of the run, for what its policies promise; without it nothing is said of that.

    Raises:
        ServerError: the tables hold no round.
    """
    last = tables.round_numbers[-1] if tables.round_numbers else None
    if last is None:
        raise ServerError("The run completed no round: there is nothing to report yet.")
    exits, clients = tables.exits_of(last), tables.clients_of(last)
    ok = [row for row in clients if row["status"] == "ok"]
    round_rows = tables.rounds.to_pylist()
    left_out = tuple(LeftOut(client_id=r["client_id"], status=r["status"]) for r in clients if r["status"] != "ok")
    rolled_back = tuple(
        RolledBack(client_id=row["client_id"], exits=tuple(row["rolled_back_exits"]))
        for row in ok
        if row["rolled_back_exits"]
    )
    return Summary(
        round=last,
        num_exits=max((row["exit"] for row in exits), default=0),
        counts=count_users(clients, round_rows[-1]),
        labels=dict(sorted(Counter(row["labels"] for row in ok if row["labels"] is not None).items())),
        num_train=_spread(ok, "num_train"),
        num_test=_spread(ok, "num_test"),
        policy=summarise_policy(exits, ok),
        exits=summarise_exits(exits, ok),
        bytes_up=_spread(ok, "bytes_up"),
        bytes_down=_spread(ok, "bytes_down"),
        seconds_personalise=_spread(ok, "seconds_personalise"),
        left_out=left_out,
        rolled_back=rolled_back,
        rounds=tuple(_round_point(row) for row in round_rows),
        sharing=summarise_sharing(tables),
        held_out=summarise_held_out(tables),
        promise=summarise_promise(ok, config),
    )


def count_users(clients: Sequence[Row], round_row: Row) -> UserCounts:
    """Count what became of the clients that were asked in one round.

    Clients that never gave a name (a node that died) stand only in the round's `failures`; they count as failed.
    """
    kinds = Counter(_kind_of(row["status"]) for row in clients)
    nameless = max(0, round_row["replies"] + round_row["failures"] - len(clients))
    return UserCounts(
        asked=len(clients) + nameless,
        ok=kinds["ok"],
        too_small=kinds["too small"],
        refused=kinds["refused"],
        failed=kinds["failed"] + nameless,
    )


def summarise_exits(exits: Sequence[Row], ok: Sequence[Row]) -> tuple[ExitSummary, ...]:
    """Summarise each exit over users, from the rows of one round; empty when there are none."""
    if not exits:
        return ()
    last = max(row["exit"] for row in exits)
    return tuple(_summarise_exit(number, last, exits, ok) for number in range(last + 1))


def summarise_policy(exits: Sequence[Row], ok: Sequence[Row]) -> PolicySummary:
    """Summarise the policy over users, from the rows of one round."""
    kept = Counter(row["client_id"] for row in _early(exits) if row["stage"] == "after" and row["kept"])
    thresholds = Counter(f"{row['threshold']:.2f}" for row in ok if row["threshold"] is not None)
    return PolicySummary(
        accuracy_original=_spread(ok, "accuracy_original"),
        accuracy_before=_spread(ok, "accuracy_before"),
        accuracy_after=_spread(ok, "accuracy_after"),
        change=Change.between((row["accuracy_before"], row["accuracy_after"]) for row in ok),
        against_original=Change.between((row["accuracy_original"], row["accuracy_after"]) for row in ok),
        mean_macs_before=_mean(row["mean_macs_before"] for row in ok),
        mean_macs_after=_mean(row["mean_macs"] for row in ok),
        original_macs=_mean(row["original_macs"] for row in ok),
        cost_fraction_before=Spread.of(_ratio(row["mean_macs_before"], row["original_macs"]) for row in ok),
        cost_fraction_after=Spread.of(_ratio(row["mean_macs"], row["original_macs"]) for row in ok),
        threshold=_spread(ok, "threshold"),
        threshold_counts=dict(sorted(thresholds.items())),
        exits_kept=Spread.of(kept[row["client_id"]] for row in ok) if exits else None,
    )


def aggregate_round(clients: Sequence[Row]) -> dict[str, Any]:
    """Return what a row of rounds.parquet holds beside `round`, `replies`, `failures` and `seconds`."""
    ok = [row for row in clients if row.get("status") == "ok"]
    means = ("accuracy_original", "accuracy_before", "accuracy_after", "mean_macs", "original_macs")
    row: dict[str, Any] = {"users": len(ok)}
    row.update({column: _mean(client.get(column) for client in ok) for column in means})
    for column in ("bytes_up", "bytes_down"):
        row[column] = sum(int(client.get(column) or 0) for client in clients)
    return row


def _summarise_exit(number: int, last: int, exits: Sequence[Row], ok: Sequence[Row]) -> ExitSummary:
    before = {row["client_id"]: row for row in exits if row["exit"] == number and row["stage"] == "before"}
    after = {row["client_id"]: row for row in exits if row["exit"] == number and row["stage"] == "after"}
    original = {row["client_id"]: row for row in ok}
    paired = [(before[client]["accuracy"], after[client]["accuracy"]) for client in before if client in after]
    against = [(original[c]["accuracy_original"], row["accuracy"]) for c, row in after.items() if c in original]
    change = Change.between(paired)
    against_original = Change.between(against)
    macs = _mean(row["macs"] for row in before.values())
    original_macs = _mean(row["original_macs"] for row in ok)
    return ExitSummary(
        exit=number,
        is_last=number == last,
        macs=macs,
        cost_fraction=_ratio(macs, original_macs),
        accuracy_before=_spread(before.values(), "accuracy"),
        accuracy_after=_spread(after.values(), "accuracy"),
        change=change,
        reaches_original=None if against_original is None else 1 - against_original.hurt,
        kept=_mean(row["kept"] for row in after.values()),
        rolled_back=sum(number in (row["rolled_back_exits"] or ()) for row in ok),
        exit_rate_before=_mean(row["exit_rate"] for row in before.values()),
        exit_rate_after=_mean(row["exit_rate"] for row in after.values()),
    )


def _early(exits: Sequence[Row]) -> list[Row]:
    last = max((row["exit"] for row in exits), default=0)
    return [row for row in exits if row["exit"] < last]


def _kind_of(status: str) -> str:
    return next((kind for kind in ("ok", "too small", "refused") if status.startswith(kind)), "failed")


def _round_point(row: Row) -> RoundPoint:
    return RoundPoint(
        round=row["round"],
        users=row["users"] or 0,
        accuracy_original=row["accuracy_original"],
        accuracy_before=row["accuracy_before"],
        accuracy_after=row["accuracy_after"],
        cost_fraction=_ratio(row["mean_macs"], row["original_macs"]),
    )


def _spread(rows: Iterable[Row], column: str) -> Spread | None:
    return Spread.of(row[column] for row in rows)


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
