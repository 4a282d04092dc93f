"""What a round leaves: rows of the run folder's tables, which replies count, and whether they are enough."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.fl_app.errors import RunFailedError
from persephonee.fl_app.server_side.participants import Participants
from persephonee.fl_app.settings.app_settings import RoundSettings
from persephonee.fl_app.wire import records as wire


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """One round, as rows of the run folder's tables."""

    exits: list[dict[str, Any]]
    clients: list[dict[str, Any]]
    replies: int
    """Clients whose report was accepted."""
    failures: int
    """No reply, an error, a refusal, or a node that did not say who it is."""
    seconds: float
    sharing: list[dict[str, Any]] = field(default_factory=list)
    """What became of the request for exits, client by client; empty where the run asks for none."""


def round_result(
    number: int, participants: Participants, reports: dict[str, PersonalisationReport], seconds: float
) -> RoundResult:
    """Return the rows of a round: a report for each participant, and a status for whoever was left out."""
    exits: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for client in participants.clients:
        report = reports[client.client_id]
        key: dict[str, Any] = {"round": number, "client_id": client.client_id}
        figures = asdict(report) if report.status == wire.OK else {}
        exits += [{**metrics, **key} for metrics in figures.pop("exit_metrics", ())]
        traffic = {"bytes_up": client.bytes_up, "bytes_down": client.bytes_down}
        rows.append({**figures, **key, "status": report.status, **traffic})
    for client_id, status in participants.left_out.items():
        rows.append({"round": number, "client_id": client_id, "status": status})
    replies = sum(is_valid(row["status"]) for row in rows)
    failures = len(rows) - replies + participants.nameless
    return RoundResult(exits=exits, clients=rows, replies=replies, failures=failures, seconds=seconds)


def is_valid(status: str) -> bool:
    """Return whether a client with this status did what it was asked, as far as its data allow it."""
    return status.split(":")[0] in (wire.OK, wire.TOO_SMALL)


def check_quota(settings: RoundSettings, row: Mapping[str, Any], statuses: Sequence[str]) -> None:
    """Refuse a round with too few valid replies.

    Args:
        settings: the quota.
        row: of rounds.parquet.
        statuses: of all clients of the round.

    Raises:
        RunFailedError: says how many there were, and the most frequent cause.
    """
    asked, ok = row["replies"] + row["failures"], statuses.count(wire.OK)
    if ok and row["replies"] >= settings.min_reply_fraction * asked:
        return
    causes = [status.rstrip(".") for status in statuses if status != wire.OK]
    common = max(sorted(set(causes)), key=causes.count) if causes else "they did not say who they are"
    needed = f"min-reply-fraction is {settings.min_reply_fraction:g}" if ok else "one at least is needed"
    raise RunFailedError(
        f"Round {row['round']}: {ok} of {asked} clients personalised ({needed}); most frequent cause: {common}."
    )
