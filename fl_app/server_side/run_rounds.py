"""The rounds of a run, from the nodes to the tables: who takes part, what each round leaves, and where to go on."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid

from persephonee.data_partitions.user_splits import choose_users
from persephonee.fl_app.server_side import checkpoint
from persephonee.fl_app.server_side.checkpoint import Checkpoint
from persephonee.fl_app.server_side.exit_sharing import ExitSharing
from persephonee.fl_app.server_side.global_model import save_merged_model
from persephonee.fl_app.server_side.own_strategy import own_strategy
from persephonee.fl_app.server_side.participants import Client, Participants
from persephonee.fl_app.server_side.round_results import check_quota
from persephonee.fl_app.server_side.run_status import RunStatus, StatusFile
from persephonee.fl_app.server_side.strategy import GlobalModel, PersonalisationStrategy
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.wire import records as wire
from persephonee.fl_app.wire.code_fingerprint import code_fingerprint
from persephonee.fl_app.wire.differential_privacy import write_spent
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.fl_app.wire.model_store import graph_records, model_records
from persephonee.multi_exit.graphs.description import graphs_fingerprint
from persephonee.multi_exit.storage import SavedModel
from persephonee.server.results.run_folder import RunFolder

log = logging.getLogger("persephonee.server")

_AWAY = "no node said that it is this client"


def promise_of(settings: AppSettings) -> tuple[float, float] | None:
    """Return the tolerance and delta for which the clients' risk curves are pooled; None where they are not."""
    chosen = settings.personalisation
    return (chosen.drop_tolerance, chosen.delta) if settings.pools_curves else None


class Rounds:
    """The rounds of one run.

    Args:
        grid: Flower's connection to the nodes.
        settings: of the run.
        model: the global model, which stays as it is; graphs in its folder go to clients without PyTorch.
        folder: where the run's tables are, and its checkpoint, if it was begun before.
        file: that says how far the run is.
    """

    def __init__(
        self,
        grid: Grid,
        settings: AppSettings,
        model: SavedModel,
        folder: RunFolder,
        file: StatusFile,
    ) -> None:
        self._settings, self._model = settings, model
        self._folder, self._file = folder, file
        self._status = RunStatus(rounds=settings.rounds.rounds)
        settings.privacy.check_accountant()
        if settings.sharing.has_own_strategy:
            # before clients work for it
            own_strategy(settings.sharing.strategy, settings.sources)
        self._begun = checkpoint.begin(folder.path, folder.completed_rounds)
        self._sharing: ExitSharing | None = None
        if settings.sharing.share_exits:
            self._sharing = ExitSharing(
                model.network,
                settings.sharing,
                settings.privacy,
                self._begun.secret,
                settings.sources,
                classifiers_alone=settings.personalisation.learns_classifiers_alone,
            )
            if self._begun.info:
                self._sharing.load_state(self._begun.arrays, self._begun.info)
        self._strategy = PersonalisationStrategy(
            grid,
            GlobalModel(
                fingerprint=model.fingerprint,
                graphs=graphs_fingerprint(model.folder),
                num_exits=model.num_exits,
                records=functools.cache(lambda: model_records(model.network, model.metadata.class_names)),
                graph_records=functools.cache(
                    lambda: {
                        **model_records(model.network, model.metadata.class_names),
                        **graph_records(model.folder, model.num_exits),
                    }
                ),
            ),
            code_fingerprint(),
            settings.rounds,
            run=self._begun.run,
            sharing=self._sharing,
            promise=promise_of(settings),
            on_progress=self._progress,
        )

    def run(self) -> None:
        """Run what is missing of the rounds, and save the merged model.

        Raises:
            RunFailedError: no node came, or a round had too few valid replies.
        """
        self._say("waiting for clients")
        participants, held_out = self._divided(self._strategy.enrol(self._users))
        last = self._settings.rounds.rounds
        for number in range(1, last + 1):
            if number not in self._folder.completed_rounds:
                self._run_round(number, participants, held_out, is_last=number == last)
            # also of rounds that a resumed run finds: one that failed stays failed
            tables = self._folder.tables()
            row = next(row for row in tables.rounds.to_pylist() if row["round"] == number)
            check_quota(self._settings.rounds, row, [client["status"] for client in tables.clients_of(number)])
        if self._sharing is not None:
            exits, contributors = self._sharing.exit_state(), self._sharing.contributors
            save_merged_model(self._model.network, self._model.metadata, exits, contributors, self._folder.path)
            if self._settings.privacy.is_on:
                log.info(write_spent(self._settings.privacy, self._sharing.releases, self._folder.path))

    def _run_round(self, number: int, participants: Participants, held_out: Sequence[Client], is_last: bool) -> None:
        measured: list[dict[str, Any]] = []
        if self._begun.held_out and number == 1:
            measured += self._measure(0, held_out, personalise=True)
        self._say("personalising", round=number, asked=len(participants.clients))
        if self._sharing is not None and self._sharing.spends_by_asking():
            # before anything leaves a client: a kill in this round must not lose count of it
            self._keep_state(number - 1)
        result = self._strategy.run_round(number, participants)
        if self._begun.held_out and self._sharing is not None:
            measured += self._measure(number, held_out, personalise=is_last)
        self._keep_state(number)
        row = {"round": number, "replies": result.replies, "failures": result.failures, "seconds": result.seconds}
        self._folder.append_round(result.exits, result.clients, row, sharing=result.sharing, held_out=measured)
        log.info("Round %d: %d replies, %d failures", number, result.replies, result.failures)

    def _keep_state(self, number: int) -> None:
        arrays, info = ({}, {}) if self._sharing is None else self._sharing.state()
        after: Checkpoint = replace(self._begun, round=number, arrays=arrays, info=info)
        after.write(self._folder.path)

    def _measure(self, number: int, held_out: Sequence[Client], personalise: bool) -> list[dict[str, Any]]:
        self._say("measuring on held-out users", round=max(number, 1), asked=len(held_out))
        away = sorted(set(self._begun.held_out or ()) - {client.client_id for client in held_out})
        missing = [{"round": number, "client_id": name, "status": f"{wire.FAILED}: {_AWAY}"} for name in away]
        return self._strategy.evaluate(number, held_out, personalise) + missing

    def _divided(self, participants: Participants) -> tuple[Participants, tuple[Client, ...]]:
        """Return who takes part, and who never does."""
        if self._folder.completed_rounds:
            # counted when the run began: tables do not tell whether a run was resumed
            for client in participants.clients:
                client.bytes_up = client.bytes_down = 0
        is_new = self._begun.held_out is None
        if is_new:
            names = [client.client_id for client in participants.clients]
            count = self._settings.rounds.num_held_out(len(names))
            drawn = choose_users(names, count, self._settings.seed) if count else ()
            # for good: drawn among who is there at a resumption, one of them may have trained before
            self._begun = replace(self._begun, held_out=drawn)
        apart = set(self._begun.held_out or ())
        taking_part = tuple(client for client in participants.clients if client.client_id not in apart)
        held_out = tuple(client for client in participants.clients if client.client_id in apart)
        self._settings.sharing.check_participants(len(taking_part))
        if is_new:
            self._begun.write(self._folder.path)
        return replace(participants, clients=taking_part), held_out

    def _users(self, count: int) -> Sequence[str]:
        # only a simulation's server opens data: it runs on the machine that owns it
        partitions = open_fitting(self._settings.data, self._model, self._model.metadata, self._settings.sources)
        return choose_users(partitions.client_ids, count, self._settings.seed, exclude=self._model.metadata.trained_on)

    def _say(self, doing: str, round: int = 0, asked: int = 0) -> None:
        self._status = replace(self._status, doing=doing, round=round, asked=asked)
        self._file.write(self._status)

    def _progress(self, kind: str, done: int, asked: int) -> None:
        # a round's second message, which clients answer without training
        doing = "choosing policies" if kind == wire.POLICY else self._status.doing
        self._file.write(replace(self._status, doing=doing, done=done, asked=asked), often=True)
