"""The strategy of a run: metrics-only rounds, one message per client and round.

The server knows each node's client id from a status query, sends the fingerprint of the global model and the round's
number, adds the model only for a client without it, and takes what arrived when the deadline is over. It averages
nothing: the frozen backbone and the personal exits stay where they are. Clients are sorted by client id, so node ids,
which are random, play no part in the result.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from clients.reports import PersonalisationReport
from fl_app import wire
from fl_app.enrolment import Client, Enrolment, enrol
from fl_app.errors import RunFailedError, WireError
from fl_app.exchange import Answer, exchange
from fl_app.settings import RoundSettings


@dataclass(frozen=True, kw_only=True)
class GlobalModel:
    """The model that clients personalise."""

    fingerprint: str
    num_exits: int
    """M, the early exits."""
    records: Callable[[], dict[str, ArrayRecord | ConfigRecord]]
    """Makes what a client without the model is sent; most runs never need it."""


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


class PersonalisationStrategy:
    """Runs rounds over the nodes of a grid.

    Args:
        grid: Flower's connection to the nodes.
        model: what clients personalise.
        code: fingerprint of the code that this server runs.
        settings: who takes part, deadlines and the quota.
        on_progress: called with (answers so far, clients asked) while a round runs.
    """

    def __init__(
        self,
        grid: Grid,
        model: GlobalModel,
        code: str,
        settings: RoundSettings,
        on_progress: Callable[[int, int], None] = lambda done, asked: None,
    ) -> None:
        self._grid = grid
        self._model = model
        self._code = code
        self._settings = settings
        self._on_progress = on_progress

    def enrol(self, users: Callable[[int], Sequence[str]]) -> Enrolment:
        """Wait for nodes and ask who they are; `users` names whom so many simulated nodes play.

        Raises:
            RunFailedError: no node came, or none said who it is.
        """
        request = wire.make_request(round_number=0, model=self._model.fingerprint, code=self._code)
        return enrol(self._grid, self._settings, request, users)

    def run_round(self, number: int, enrolment: Enrolment) -> RoundResult:
        """Ask every client for one personalisation round and return what arrived in time."""
        start = time.monotonic()
        clients = enrolment.clients
        reports = self._collect(number, clients, self._settings.round_deadline)
        lacking = [c for c in clients if reports[c.client_id].status.startswith(wire.MODEL_MISSING)]
        if lacking:
            left = self._settings.round_deadline - (time.monotonic() - start)
            for client in lacking:
                client.has_model = False
            reports.update(self._collect(number, lacking, max(left, 0.0)))
        result = _result(number, enrolment, reports, time.monotonic() - start)
        for client in clients:
            client.bytes_up = client.bytes_down = 0
        return result

    def _collect(self, number: int, clients: Sequence[Client], deadline: float) -> dict[str, PersonalisationReport]:
        of_node = {client.node_id: client for client in clients}
        messages = [self._train_message(number, client, deadline) for client in clients]
        done = 0

        def count(_: Answer) -> None:
            nonlocal done
            done += 1
            self._on_progress(done, len(messages))

        answers = exchange(self._grid, messages, deadline, count)
        return {of_node[a.node_id].client_id: self._report(number, of_node[a.node_id], a) for a in answers}

    def _train_message(self, number: int, client: Client, deadline: float) -> Message:
        user = client.client_id if client.is_simulated else ""
        content = wire.make_request(round_number=number, model=self._model.fingerprint, code=self._code, user=user)
        if not client.has_model:
            content.update(self._model.records())
            client.has_model = True
        client.bytes_down += wire.content_bytes(content)
        return Message(content, client.node_id, wire.TRAIN, ttl=max(deadline, 1.0), group_id=str(number))

    def _report(self, number: int, client: Client, answer: Answer) -> PersonalisationReport:
        if answer.content is None:
            return wire.no_report(client.client_id, f"{wire.FAILED}: {answer.cause}")
        client.bytes_up += wire.content_bytes(answer.content)
        try:
            report = wire.from_reply(answer.content, self._model.num_exits)
        except WireError as error:
            return wire.no_report(client.client_id, f"{wire.REFUSED}: the reply held something else: {error}")
        if report.client_id != client.client_id or (report.status == wire.OK and report.round != number):
            return wire.no_report(client.client_id, f"{wire.REFUSED}: the reply is of another client or round")
        return report


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
    if ok and row["replies"] >= settings.min_reply_share * asked:
        return
    causes = [status.rstrip(".") for status in statuses if status != wire.OK]
    common = max(sorted(set(causes)), key=causes.count) if causes else "they did not say who they are"
    needed = f"min-reply-share is {settings.min_reply_share:g}" if ok else "one at least is needed"
    raise RunFailedError(
        f"Round {row['round']}: {ok} of {asked} clients personalised ({needed}); most frequent cause: {common}."
    )


def _result(
    number: int, enrolment: Enrolment, reports: dict[str, PersonalisationReport], seconds: float
) -> RoundResult:
    exits: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for client in enrolment.clients:
        report = reports[client.client_id]
        key: dict[str, Any] = {"round": number, "client_id": client.client_id}
        figures = asdict(report) if report.status == wire.OK else {}
        exits += [{**metrics, **key} for metrics in figures.pop("exits", ())]
        traffic = {"bytes_up": client.bytes_up, "bytes_down": client.bytes_down}
        rows.append({**figures, **key, "status": report.status, **traffic})
    for client_id, status in enrolment.left_out.items():
        rows.append({"round": number, "client_id": client_id, "status": status})
    replies = sum(row["status"].split(":")[0] in (wire.OK, wire.TOO_SMALL) for row in rows)
    failures = len(rows) - replies + enrolment.nameless
    return RoundResult(exits=exits, clients=rows, replies=replies, failures=failures, seconds=seconds)
