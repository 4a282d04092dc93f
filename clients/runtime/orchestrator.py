"""The orchestrator: when to explore, when to raise the threshold, when to personalise (PersEPhonEE, Sec. 3.4).

It computes nothing itself: the device (device.py) tells it what was answered and explored and asks what to do. Every
decision goes to the event log with its reason, and the state to the device's database.
"""

import math
from dataclasses import replace

from persephonee.clients.runtime.conditions import Decision, Needs, decide, scarcity
from persephonee.clients.runtime.device_state import DeviceState
from persephonee.clients.runtime.drift import DriftMonitor
from persephonee.clients.runtime.event_log import EventLog
from persephonee.clients.runtime.exploration import Explored, Validation, agreement_at, raised_threshold
from persephonee.clients.runtime.persistent_state import MAX_EXPLORED, PersistentState
from persephonee.clients.runtime.phases import OrchestratorState, Phase, Signal, next_phase
from persephonee.clients.runtime.settings import OrchestratorSettings
from persephonee.data_partitions.seeds import uniform_draw

_COLLAPSE_Z = 4.0
_CHANCE = 0.01
"""How likely it may be that a window agrees so seldom by chance before the threshold is raised for it alone."""
_MOST_DOUBLINGS = 10


class Orchestrator:
    """Watches one device.

    Args:
        settings: how.
        memory: where the state outlives a kill.
        events: where decisions go.
        num_exits: early exits in use before the first round.
        seed: decides, with the number of a frame, which frames are explored.

    Attributes:
        state: the current state; it is in the database too.
        validation: how the policy in force did on its calibration samples; None before the first round.
    """

    def __init__(
        self, settings: OrchestratorSettings, memory: PersistentState, events: EventLog, num_exits: int, seed: int
    ) -> None:
        self.settings = settings
        self._memory = memory
        self._events = events
        self._num_exits = num_exits
        self._seed = seed
        self._scarcity = 0.0
        self.state = memory.state() or OrchestratorState(threshold=settings.initial_threshold)
        self.validation = memory.validation()
        self._explored = memory.explored()
        self._monitor = self._fresh_monitor()
        # the detectors are a function of what they saw: fed again, they are what they were before the restart
        for sample in self._explored:
            self._monitor.update(sample.losses)

    def start_again(self) -> bool:
        """Leave whatever phase a kill stopped; return whether it was a round."""
        was_round = self.state.phase is Phase.PERSONALISATION
        self._move(Signal.STARTED_AGAIN)
        return was_round

    def wants_to_explore(self, device: DeviceState) -> bool:
        """Return whether the next frame is to be explored: a draw that a restart does not change.

        The emptier the battery and the busier the device, the more seldom.
        """
        self._scarcity = scarcity(device, self.settings.conditions)
        left = 1 - (1 - self.settings.scarce_exploration) * self._scarcity
        return uniform_draw(self._seed, self.state.frames, "exploration") < self.settings.p_expl * left

    def note_answer(self, left_early: bool, explored: Explored | None) -> None:
        """Update the state with a frame's prediction and with what its exploration showed."""
        recent = (*self.state.recent_early, int(left_early))[-self.settings.collapse_window :]
        self._set(frames=self.state.frames + 1, recent_early=recent)
        if explored is not None:
            self._move(Signal.EXPLORE)
            self._note_explored(explored)
            self._move(Signal.EXPLORED)
        self._look_for_collapse()

    def decide(self, new_train: int, calibration: int, device: DeviceState) -> Decision:
        """Decide whether a round begins now; a reason to wait is logged when it changes."""
        settings, state = self.settings, self.state
        needs = Needs(
            new_train=new_train,
            calibration=calibration,
            asked=state.asked,
            threshold=state.threshold,
            validated=self.validation.threshold if self.validation else None,
        )
        decision = decide(needs, device, settings.conditions)
        if settings.max_rounds is not None and state.round >= settings.max_rounds:
            return replace(decision, go=False)
        if decision.go and state.frames < state.retry_at_frame:
            reason = (
                f"{decision.reason}, but the last round was given up or broke off: none begins before frame "
                f"{state.retry_at_frame}"
            )
            decision = replace(decision, go=False, cause="retry", reason=reason)
        waiting = decision.cause if decision.wanted and not decision.go else ""
        if waiting != state.waiting:
            self._set(waiting=waiting)
            if waiting:
                self._events.note("personalisation waits", decision.reason)
        return decision

    def begin_round(self, last_seq: int, reason: str) -> None:
        """Enter the phase of personalisation."""
        self._move(Signal.PERSONALISE)
        # counted before it begins: a round that kills the process cannot count itself afterwards
        self._set(waiting="", began_at_seq=last_seq, attempts=self.state.attempts + 1)
        self._events.note("round begins", reason, round=self.state.round + 1, last_sample=last_seq)

    def end_round(self, round_number: int, threshold: float, validation: Validation | None) -> None:
        """Put a round's threshold in force and forget what was explored under the earlier exits."""
        self.validation, self._explored = validation, []
        self._monitor = self._fresh_monitor()
        phase = self.state.phase
        # in memory first: on a full disk the round is in force until the next start, which adopts it again
        self._set(
            phase=next_phase(phase, Signal.DONE) if phase is Phase.PERSONALISATION else phase,
            round=round_number,
            threshold=threshold,
            seq_at_round=self.state.began_at_seq,
            asked="",
            attempts=0,
            recent_early=(),
        )
        self._memory.save_validation(validation)

    def give_up_round(self, reason: str) -> None:
        """Leave the phase of personalisation without a result; the previous exits were in force all the time."""
        self._set(
            phase=next_phase(self.state.phase, Signal.GIVEN_UP),
            retry_at_frame=self.state.frames + self.settings.retry_frames,
            attempts=0,
        )
        self._events.note("round given up", f"{reason}; the previous exits stay in force", round=self.state.round + 1)

    def note_broken_off(self) -> None:
        """Take that the process ended in a round: once may be a loss of power, more often it is the round itself."""
        attempts = self.state.attempts
        wait = self.settings.retry_frames * 2 ** min(attempts - 2, _MOST_DOUBLINGS) if attempts > 1 else 0
        self._set(retry_at_frame=self.state.frames + wait)
        times = f"{attempts} times in a row, so none begins for {wait} frames" if wait else "once, so it begins again"
        self._events.note(
            "round interrupted",
            f"the device stopped in a round, {times}: the exits before it are in force",
            attempts=attempts,
        )

    def _note_explored(self, sample: Explored) -> None:
        self._memory.add_explored(self.state.frames, sample)
        self._explored.append(sample)
        del self._explored[:-MAX_EXPLORED]
        risen = self._monitor.update(sample.losses)
        if self.state.asked:
            # already asked: only make sure that the threshold keeps up with what exploration goes on to find
            self._raise_threshold()
        elif risen:
            self._ask(self._drift_reason(risen), "drift")
            self._raise_threshold()
        elif self._agrees_too_seldom():
            # no drift that the rule would see: once the threshold is far from the validated one, it is the reason
            # of a round by itself
            self._raise_threshold()

    @property
    def _needed(self) -> float:
        """The agreement with the last exit below which the threshold rises; less where energy or time is scarce."""
        validated = self.validation.agreement if self.validation else 1.0
        return validated - self.settings.drop_tolerance * (1 + (self.settings.scarce_tolerance - 1) * self._scarcity)

    def _agrees_too_seldom(self) -> bool:
        window = self._explored[-self.settings.window :]
        if self.validation is None or len(window) < self.settings.window:
            return False
        agreeing = round(agreement_at(window, self.state.threshold)[0] * len(window))
        return _at_most(agreeing, len(window), min(max(self._needed, 0.0), 1.0)) < _CHANCE

    def _raise_threshold(self) -> None:
        window = self._explored[-self.settings.window :]
        if not self.settings.adapts or len(window) < 5:
            return
        needed = self._needed
        before = self.state.threshold
        raised = raised_threshold(window, before, needed)
        if raised > before:
            was, now = agreement_at(window, before)[0], agreement_at(window, raised)[0]
            self._set(threshold=raised)
            self._events.note(
                "threshold raised",
                f"of the last {len(window)} explored samples the policy agreed with the last exit on {was:.1%} at "
                f"{before:g}, and {needed:.1%} are needed: at {raised:g} it is {now:.1%}",
                before=before,
                after=raised,
            )

    def _drift_reason(self, risen: tuple[int, ...]) -> str:
        window = self._explored[-self.settings.window :]
        exits = self.validation.exits if self.validation else tuple(range(self._num_exits))
        parts = []
        for position in risen:
            now = sum(sample.losses[position] for sample in window) / len(window)
            losses = self.validation.losses[position] if self.validation else ()
            against = f", against {sum(losses) / len(losses):.3f} at calibration" if losses else ""
            parts.append(f"the loss of exit {exits[position]} has risen to {now:.3f} nats{against}")
        return f"{self.settings.drift.rule} finds that {' and '.join(parts)}"

    def _look_for_collapse(self) -> None:
        """Flag exits that have stopped answering: under a threshold that we raised ourselves that is expected."""
        validation, recent = self.validation, self.state.recent_early
        if validation is None or validation.num_samples == 0 or len(recent) < self.settings.collapse_window:
            return
        if self.state.asked or self.state.threshold != validation.threshold:
            return
        expected, now = validation.early_fraction, sum(recent) / len(recent)
        # the calibration set is a sample too: both means err
        error = math.sqrt(expected * (1 - expected) * (1 / len(recent) + 1 / validation.num_samples))
        if now < self.settings.collapse_fraction * expected and now < expected - _COLLAPSE_Z * error:
            self._ask(
                f"early exits answered {now:.0%} of the last {len(recent)} samples, against {expected:.0%} at "
                "calibration",
                "exit rates collapsed",
            )

    def _ask(self, reason: str, kind: str) -> None:
        self._events.note(kind, reason, frame=self.state.frames)
        self._set(asked=reason if self.settings.adapts else "")
        if not self.settings.adapts:
            self._monitor = self._fresh_monitor()

    def _fresh_monitor(self) -> DriftMonitor:
        losses = self.validation.losses if self.validation else ((),) * self._num_exits
        return DriftMonitor(self.settings.drift, losses)

    def _move(self, signal: Signal) -> None:
        self._set(phase=next_phase(self.state.phase, signal))

    def _set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        self._memory.save_state(self.state)


def _at_most(successes: int, trials: int, probability: float) -> float:
    """Return how likely so few successes are, or fewer: the binomial distribution."""
    return math.fsum(
        math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(successes + 1)
    )
