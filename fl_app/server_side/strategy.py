"""The strategy of a run: rounds with one message per client, metrics-only or with exits that clients share.

The server knows each node's client id from a status query, sends the fingerprint of the model that the run began with
and the round's number, adds the model only for a client without it and the merged exits once there are any, and takes
what arrived when the deadline is over. The frozen backbone is the same for everybody and never travels again; what
clients share is merged by exit_sharing.py. Clients are sorted by client id, so node ids, which are random, play no
part in the result.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.clients.personalisation.risk.risk_curves import RiskCurve
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.server_side.aggregation import Contribution
from persephonee.fl_app.server_side.exit_sharing import ExitSharing
from persephonee.fl_app.server_side.messaging import Reply, send_and_receive
from persephonee.fl_app.server_side.participants import Client, Participants, enrol
from persephonee.fl_app.server_side.risk_pooling import pools_of, with_policy_of
from persephonee.fl_app.server_side.round_results import RoundResult, is_valid, round_result
from persephonee.fl_app.settings.app_settings import RoundSettings
from persephonee.fl_app.wire import records as wire
from persephonee.fl_app.wire.risk_records import curve_of, pool_record

_TAKES_NONE = f"{wire.REFUSED}: its owner lets no merged exits in"


@dataclass(frozen=True, kw_only=True)
class GlobalModel:
    """The model that clients personalise."""

    fingerprint: str
    graphs: str
    """Fingerprint of its graphs; empty where it carries none."""
    num_exits: int
    """M, the early exits."""
    records: Callable[[], dict[str, ArrayRecord | ConfigRecord]]
    """Makes what a client without the model is sent; most runs never need it."""
    graph_records: Callable[[], dict[str, ArrayRecord | ConfigRecord]]
    """The same for a client without PyTorch."""


class PersonalisationStrategy:
    """Runs rounds over the nodes of a grid.

    Args:
        grid: Flower's connection to the nodes.
        model: what clients personalise.
        code: fingerprint of the code that this server runs.
        settings: who takes part, deadlines and the quota.
        run: names the run to its clients, also when another process goes on with it.
        sharing: of the exits; None for metrics-only rounds.
        promise: the tolerance and delta for which the clients' risk curves are pooled; None where they are not.
        on_progress: called with (kind of message, replies so far, clients asked) while they arrive.
    """

    def __init__(
        self,
        grid: Grid,
        model: GlobalModel,
        code: str,
        settings: RoundSettings,
        run: str = "",
        sharing: ExitSharing | None = None,
        promise: tuple[float, float] | None = None,
        on_progress: Callable[[str, int, int], None] = lambda kind, done, asked: None,
    ) -> None:
        self._grid = grid
        self._model = model
        self._code = code
        self._settings = settings
        self._run = run
        self._sharing = sharing
        self._promise = promise
        self._on_progress = on_progress

    def enrol(self, users: Callable[[int], Sequence[str]]) -> Participants:
        """Wait for nodes and ask who they are; `users` names whom so many simulated nodes play.

        Raises:
            RunFailedError: no node came, or none said who it is.
        """
        model = self._model
        request = wire.make_request(round_number=0, model=model.fingerprint, graphs=model.graphs, code=self._code)
        return enrol(self._grid, self._settings, request, users)

    def run_round(self, number: int, participants: Participants) -> RoundResult:
        """Ask every client for one personalisation round, merge what they share, and return what arrived in time."""
        start = time.monotonic()
        replies = self._ask(wire.TRAIN, number, participants.clients)
        reports = {name: reply.report for name, reply in replies.items()}
        reports.update(self._choose_again(number, participants.clients, replies))
        result = round_result(number, participants, reports, time.monotonic() - start)
        for client in participants.clients:
            client.bytes_up = client.bytes_down = 0
        return result if self._sharing is None else replace(result, sharing=self._merge(number, replies))

    def _choose_again(
        self, number: int, clients: Sequence[Client], replies: Mapping[str, "_Reply"]
    ) -> dict[str, PersonalisationReport]:
        """Pool the risk curves that came, send each client the pool, and return what those report who then chose again.

        Clients with labels and without lose in other ways, and make a pool of their own each. Whoever does not answer
        keeps the policy that it has, and the report of it.
        """
        chosen: dict[str, PersonalisationReport] = {}
        curves = {
            name: (reply.report.labels == "all", reply.curve)
            for name, reply in replies.items()
            if reply.curve is not None and reply.report.status == wire.OK
        }
        for pool, members in pools_of(curves, self._promise):
            asked = [client for client in clients if client.client_id in members]
            records = {"pool": pool_record(pool)}
            for name, reply in self._ask(wire.POLICY, number, asked, records=records).items():
                if reply.report.status == wire.OK:
                    chosen[name] = with_policy_of(replies[name].report, reply.report)
        return chosen

    def evaluate(self, number: int, clients: Sequence[Client], personalise: bool) -> list[dict[str, Any]]:
        """Measure the global exits after round `number` on clients that take no part in any round.

        Args:
            number: 0 for the model that the run began with.
            clients: whom to ask.
            personalise: let each of them personalise first, for the figures after; nothing of it is kept.

        Returns:
            Rows of held_out.parquet; one with a status alone for a client that has no figures.
        """
        merged = self._sharing is not None and self._sharing.records()
        taking = [client for client in clients if client.takes_exits or not merged]
        rows: list[dict[str, Any]] = [
            {"round": number, "client_id": client.client_id, "status": _TAKES_NONE}
            for client in clients
            if client not in taking
        ]
        for client_id, reply in self._ask(wire.EVALUATE, number, taking, personalise).items():
            key = {"round": number, "client_id": client_id, "status": reply.report.status}
            exits = [asdict(row) for row in reply.report.exit_metrics if not math.isnan(row.accuracy)]
            rows += [{**row, **key} for row in exits] or [key]
        return [{k: v for k, v in row.items() if k != "kept"} for row in rows]

    def _merge(self, number: int, replies: Mapping[str, "_Reply"]) -> list[dict[str, Any]]:
        assert self._sharing is not None
        ok = {name: reply for name, reply in replies.items() if reply.report.status == wire.OK}
        shared = [reply.shared for reply in ok.values() if reply.shared is not None]
        self._sharing.merge(number, shared)
        return self._sharing.rows(number, {name: reply.outcome for name, reply in ok.items()}, shared)

    def _ask(
        self,
        kind: str,
        number: int,
        clients: Sequence[Client],
        personalise: bool = False,
        records: Mapping[str, MetricRecord] | None = None,
    ) -> dict[str, "_Reply"]:
        """Return each client's reply; a client that turns out to lack the model is sent it, within the deadline."""
        start = time.monotonic()
        make = partial(self._message, kind, number, personalise=personalise, records=records or {})
        enough = math.ceil(self._settings.enough_fraction * len(clients))
        replies = self._collect(kind, number, clients, make, self._settings.round_deadline, enough)
        lacking = [c for c in clients if replies[c.client_id].report.status.startswith(wire.MODEL_MISSING)]
        for client in lacking:
            client.has_model = False
        enough -= sum(is_valid(reply.report.status) for reply in replies.values())
        if lacking and enough > 0:
            left = self._settings.round_deadline - (time.monotonic() - start)
            replies.update(self._collect(kind, number, lacking, make, max(left, 0.0), enough))
        return replies

    def _collect(
        self,
        kind: str,
        number: int,
        clients: Sequence[Client],
        make: Callable[[Client, float], Message],
        deadline: float,
        enough: int,
    ) -> dict[str, "_Reply"]:
        of_node = {client.node_id: client for client in clients}
        messages = [make(client, deadline) for client in clients]
        replies: dict[int, _Reply] = {}

        def keep(answer: Reply) -> None:
            # as they arrive: the bytes of shared exits are let go, one message after the other
            replies[answer.node_id] = self._reply(kind, number, of_node[answer.node_id], answer)
            self._on_progress(kind, len(replies), len(messages))

        def counts(answer: Reply) -> bool:
            # a client that refuses does so at once: it must not end the round before others have trained
            return is_valid(replies[answer.node_id].report.status)

        for answer in send_and_receive(self._grid, messages, deadline, keep, counts, enough):
            if answer.node_id not in replies:
                replies[answer.node_id] = self._reply(kind, number, of_node[answer.node_id], answer)
        return {client.client_id: replies[client.node_id] for client in clients}

    def _message(
        self,
        kind: str,
        number: int,
        client: Client,
        deadline: float,
        *,
        personalise: bool,
        records: Mapping[str, MetricRecord],
    ) -> Message:
        content = wire.make_request(
            round_number=number,
            model=self._model.fingerprint,
            graphs=self._model.graphs,
            code=self._code,
            user=client.client_id if client.is_simulated else "",
            run=self._run,
            personalise=personalise,
        )
        content.update(records)
        if not client.has_model:
            content.update(self._model.graph_records() if client.needs_graphs else self._model.records())
            client.has_model = True
        if self._sharing is not None and client.takes_exits and kind != wire.POLICY:
            content.update(self._sharing.records())
        client.bytes_down += wire.content_bytes(content)
        return Message(content, client.node_id, kind, ttl=max(deadline, 1.0), group_id=str(number))

    def _reply(self, kind: str, number: int, client: Client, answer: Reply) -> "_Reply":
        if answer.content is None:
            return _Reply(wire.no_report(client.client_id, f"{wire.FAILED}: {answer.cause}"))
        client.bytes_up += wire.content_bytes(answer.content)
        try:
            report = wire.from_reply(
                answer.content,
                self._model.num_exits,
                exits_allowed=self._sharing is not None,
                is_personalised=kind in (wire.TRAIN, wire.POLICY),
                curve_allowed=self._promise is not None and kind == wire.TRAIN,
            )
            curve = curve_of(answer.content["curve"], self._model.num_exits) if "curve" in answer.content else None
        except WireError as error:
            words = f"{wire.REFUSED}: the reply held something else: {error}"
            return _Reply(wire.no_report(client.client_id, words))
        if report.client_id != client.client_id or (report.status == wire.OK and report.round != number):
            words = f"{wire.REFUSED}: the reply is of another client or round"
            return _Reply(wire.no_report(client.client_id, words))
        if self._sharing is None or report.status != wire.OK or kind == wire.POLICY:
            return _Reply(report, curve=curve)
        return _Reply(report, *self._sharing.take(client.client_id, answer.content, report), curve=curve)


@dataclass(frozen=True)
class _Reply:
    """What a client answered, as far as it is of use."""

    report: PersonalisationReport
    shared: Contribution | None = None
    outcome: str = ""
    """What became of the request for exits."""
    curve: RiskCurve | None = None
    """The client's risk curve, where it sent one."""
