"""A device that lives with its user: it answers, explores, stores samples and personalises (Sec. 3.2 to 3.4).

`answer` takes one frame, `personalise_if_due` one decision. One transaction holds all that a frame changes; a kill at
any moment leaves the device as it was after the last frame that was acknowledged, with the exits and the policy of one
round: the exit store replaces both at once, and `_recover` makes the rest follow.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from persephonee.clients.errors import ClientError, StoreFullError
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.device_round import (
    PolicyInForce,
    chosen_and_judged,
    personalise_from_store,
    summary_of,
    validate,
)
from persephonee.clients.runtime.device_settings import DeviceSettings, Frame, Prediction
from persephonee.clients.runtime.device_state import Clock, DeviceStateSource
from persephonee.clients.runtime.event_log import Event, EventLog
from persephonee.clients.runtime.exploration import Explored, explore_logits
from persephonee.clients.runtime.orchestrator import Orchestrator
from persephonee.clients.runtime.persistent_state import PersistentState
from persephonee.clients.runtime.sample_store import CALIBRATION, TRAIN, SampleStore
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network


@dataclass
class _Writing:
    """Whether what was written is on the disk."""

    is_kept: bool = False


class Device:
    """One device.

    Args:
        network: the global model; the device replaces its exits by the personal ones.
        database: open for writing.
        exits: the store of personal exits.
        settings: the device's user, its schedule, and its limits.
        clock: the wall clock.
        source: reads the device's state: power, load, temperature, memory.
        listener: called with every event as it is noted.

    Raises:
        StoreError: a store is damaged, or belongs to another model or another user.
    """

    def __init__(
        self,
        network: "Network",
        database: DeviceDatabase,
        exits: ExitStore,
        settings: DeviceSettings,
        clock: Clock,
        source: DeviceStateSource,
        listener: Callable[[Event], None] | None = None,
    ) -> None:
        self.network = network.freeze_backbone()
        self.settings = settings
        self._database = database
        self._exits = exits
        self._source = source
        self._in_force = PolicyInForce(self.network, exits, settings.client_id)
        model = network.backbone_fingerprint
        database.require({"user": settings.client_id, "model": model, "image shape": list(network.input_shape)})
        self.events = EventLog(database, clock, listener)
        self.samples = SampleStore(database, settings.samples, network.input_shape, clock)
        self._memory = PersistentState(database)
        self.counters = self._memory.counters(network.num_exits)
        self.orchestrator = Orchestrator(
            settings.orchestrator, self._memory, self.events, network.num_exits, settings.seed
        )
        self._is_full = False
        # a watched folder would bring again what found no room in the database
        self._answered_unwritten: set[str] = set()
        with database.transaction():
            self._recover()

    @property
    def policy(self) -> ExitPolicy:
        """The exits in use and the active threshold."""
        return self._in_force.engine.policy

    def answer(self, frame: Frame) -> Prediction:
        """Answer a frame, and store it for later rounds; returns when what it changed is on the disk.

        Raises:
            ImageError: the image is of another shape than the model takes.
        """
        explores = self.orchestrator.wants_to_explore(self._source.read())
        image = frame.image[None]
        begin = time.perf_counter()
        explored: Explored | None = None
        if explores:
            exploration = self._in_force.engine.explore(image)
            predictions = exploration.predictions
        else:
            predictions = self._in_force.engine.infer(image)
        latency_ms = 1e3 * (time.perf_counter() - begin)
        if explores:
            explored = explore_logits(exploration.logits.astype(np.float64), exploration.unfamiliar)[0]
        exit_indices = int(predictions.exit_indices[0])
        stored = self._keep(frame, exit_indices, explored, latency_ms)
        return Prediction(
            key=frame.key,
            label=int(predictions.labels[0]),
            confidence=float(predictions.confidences[0]),
            exit=exit_indices,
            latency_ms=latency_ms,
            explored=explores,
            stored=stored,
        )

    def skip(self, key: str, reason: str, seen_as: str = "") -> None:
        """Count a file or row that holds no usable image, and note the reason as an event.

        Args:
            key: the name of the frame; it counts as answered and is not offered again.
            reason: one sentence for the event log.
            seen_as: what is remembered as answered, where another content under this key is to be looked at again;
                the key itself by default.
        """
        self.counters.skipped += 1
        with self._written_if_room() as writing:
            self._memory.note_answered(seen_as or key)
            self._memory.save_counters(self.counters)
            self.events.note("frame skipped", reason, key=key)
        if not writing.is_kept:
            self._answered_unwritten.add(seen_as or key)

    def has_answered(self, key: str) -> bool:
        """Return whether a frame of this name was answered or skipped before, in this run or an earlier one."""
        return key in self._answered_unwritten or self._memory.has_answered(key)

    def set_label(self, key: str, label: int) -> bool:
        """Give a stored sample the label that its user has said since; return whether it is still stored."""
        with self._written_if_room() as writing:
            is_stored = self.samples.set_label(key, label)
        return writing.is_kept and is_stored

    def stop(self, reason: str) -> None:
        """Record why the device stops, as its last event."""
        with self._written_if_room():
            self.events.note("stopped", reason)

    def personalise_if_due(self) -> PersonalisationReport | None:
        """Run a round if the orchestrator says so; return its report, None without a round."""
        if self._is_full:
            # a round that cannot be written need not begin; the next frame that finds room ends it
            return None
        new = self.samples.count(TRAIN, after=self.orchestrator.state.seq_at_round)
        before, goes = self.orchestrator.state, False
        with self._written_if_room() as writing:
            decision = self.orchestrator.decide(new, self.samples.count(CALIBRATION), self._source.read())
            if decision.go:
                self.orchestrator.begin_round(self.samples.last_seq(), decision.reason)
            goes = decision.go
        if not writing.is_kept:
            self.orchestrator.state = before
        if not writing.is_kept or not goes:
            return None
        try:
            return self._round()
        except (ClientError, OSError, MemoryError) as error:
            # whatever else stops a round ends the process, and the next start recovers as from a kill
            self._give_up(f"the round failed ({str(error).rstrip('.')})")
            return None

    def _round(self) -> PersonalisationReport:
        self._in_force.load_global_exits()
        samples, split = self._round_samples()
        result = personalise_from_store(
            self.network,
            samples,
            split,
            self.settings.personalisation,
            self.settings.weights,
            self._exits,
            self.orchestrator.state.round + 1,
            self.settings.seed,
        )
        report = result.report
        # on a full disk the round is in force all the same: the exits are safe, and the next start adopts them
        with self._written_if_room():
            self._put_in_force(adopt=True)
            self.counters.round_seconds += report.seconds_personalise
            self._memory.save_counters(self.counters)
            self.events.note("round done", summary_of(report))
        return report

    def _give_up(self, reason: str) -> None:
        self.counters.refused_rounds += 1
        with self._written_if_room():
            self.orchestrator.give_up_round(reason)
            self._memory.save_counters(self.counters)
        with self._written_if_room():
            self._put_in_force(adopt=False)

    def _recover(self) -> None:
        was_round = self.orchestrator.start_again()
        before = self.orchestrator.state.round
        stored = self._in_force.stored_exits()
        known = self.orchestrator.validation
        self._put_in_force(adopt=stored is not None and (known is None or known.round != stored.round))
        after = self.orchestrator.state.round
        if after != before:
            self._memory.save_counters(self.counters)
            self.events.note("round adopted", f"round {after} was finished before the device stopped: it is in force")
        elif was_round:
            self.counters.refused_rounds += 1
            self._memory.save_counters(self.counters)
            self.orchestrator.note_broken_off()
        self.events.note(
            "started",
            f"round {after} is in force: exits {list(self.policy.exits_in_use)} "
            f"at the threshold {self.policy.threshold:g}",
            frames=self.orchestrator.state.frames,
        )

    def _put_in_force(self, *, adopt: bool) -> None:
        """Load the exits and the policy of the exit store; with `adopt` the orchestrator takes them up too."""
        state = self.orchestrator.state
        # since the inputs changed these may no longer be the classes that the device is shown
        stored = self._in_force.load(counts_on_classes=adopt or not state.asked)
        # what is in force first, and only then what may find no room
        if adopt and stored is not None:
            samples, split = self._round_samples()
            validation = validate(self.network, samples, split, stored.policy, stored.round, self._in_force.last_shift)
            self.counters.rounds += stored.round != state.round
            self.orchestrator.end_round(stored.round, stored.policy.threshold, validation)
        else:
            self._in_force.use_threshold(state.threshold)
        self._database.set_fact("exits in use", list(self.policy.exits_in_use))

    def _round_samples(self) -> tuple[UserSamples, SampleSplit]:
        settings = self.settings
        newest = settings.samples_after_drift if self.orchestrator.state.asked else settings.round_samples
        samples, split = self.samples.load(settings.client_id, newest)
        return samples, chosen_and_judged(split, settings.personalisation.rule)

    def _keep(self, frame: Frame, exit_indices: int, explored: Explored | None, latency_ms: float) -> bool:
        """Commit what a frame changed; on a full disk the answer is given all the same."""
        self.counters.add_answer(
            exit_indices,
            is_explored=explored is not None,
            latency_ms=latency_ms,
            policy=self.policy,
            costs=self.network.costs,
        )
        before, stored = self.orchestrator.state, False
        with self._written_if_room() as writing:
            self._memory.note_answered(frame.key)
            stored = self.samples.add(frame.image, frame.key, frame.label) is not None
            self.orchestrator.note_answer(exit_indices < self.network.num_exits, explored)
            self.counters.unstored += not stored
            self._memory.save_counters(self.counters)
        if writing.is_kept:
            self._is_full = False
        else:
            self._answered_unwritten.add(frame.key)
            # which frames are explored depends on their number, which goes on
            stored, self.orchestrator.state = False, replace(before, frames=before.frames + 1)
        if self.orchestrator.state.asked and self._in_force.counts_on_classes:
            self._put_in_force(adopt=False)
        self._in_force.use_threshold(self.orchestrator.state.threshold)
        return stored

    @contextmanager
    def _written_if_room(self) -> Iterator[_Writing]:
        """Commit what is written inside; on a full disk nothing of it is: that is told once, and the device goes on."""
        writing = _Writing()
        try:
            with self._database.transaction():
                yield writing
            writing.is_kept = True
        except StoreFullError as error:
            if not self._is_full and self.events.listener is not None:
                # it cannot be logged, there is no room
                self.events.listener(Event(seq=0, wall=time.time(), kind="disk full", reason=str(error), details={}))
            self._is_full = True
