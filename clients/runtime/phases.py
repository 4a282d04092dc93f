"""The three phases of a device and the state that outlives a kill (PersEPhonEE, Sec. 3.4).

             explore
┌───────────┐ ─────► ┌─────────────┐
│ INFERENCE │        │ EXPLORATION │    one sample: the last exit is computed too
└───────────┘ ◄───── └─────────────┘
  │      ▲   explored
  │      │
  │      └── done | given up | started again
  ▼ personalise
┌─────────────────┐
│ PERSONALISATION │                    one round; the exits in force stay in force until it is done
└─────────────────┘
"""

from dataclasses import dataclass
from enum import StrEnum

from persephonee.clients.errors import ClientSettingsError


class Phase(StrEnum):
    """What the device is doing."""

    INFERENCE = "inference"
    EXPLORATION = "exploration"
    PERSONALISATION = "personalisation"


class Signal(StrEnum):
    """What moves the device from one phase to another."""

    EXPLORE = "explore"
    EXPLORED = "explored"
    PERSONALISE = "personalise"
    DONE = "done"
    GIVEN_UP = "given up"
    STARTED_AGAIN = "started again"


_NEXT = {
    (Phase.INFERENCE, Signal.EXPLORE): Phase.EXPLORATION,
    (Phase.EXPLORATION, Signal.EXPLORED): Phase.INFERENCE,
    (Phase.INFERENCE, Signal.PERSONALISE): Phase.PERSONALISATION,
    (Phase.PERSONALISATION, Signal.DONE): Phase.INFERENCE,
    (Phase.PERSONALISATION, Signal.GIVEN_UP): Phase.INFERENCE,
    # a kill may come in any phase
    (Phase.INFERENCE, Signal.STARTED_AGAIN): Phase.INFERENCE,
    (Phase.EXPLORATION, Signal.STARTED_AGAIN): Phase.INFERENCE,
    (Phase.PERSONALISATION, Signal.STARTED_AGAIN): Phase.INFERENCE,
}


def next_phase(phase: Phase, signal: Signal) -> Phase:
    """Return the phase that follows.

    Raises:
        ClientSettingsError: the signal means nothing in this phase.
    """
    if (phase, signal) not in _NEXT:
        known = ", ".join(s for p, s in _NEXT if p == phase)
        raise ClientSettingsError(f"{signal.value!r} means nothing in the phase {phase.value}: expected {known}.")
    return _NEXT[phase, signal]


@dataclass(frozen=True, kw_only=True)
class OrchestratorState:
    """What the orchestrator has to know after a restart.

    Attributes:
        phase: the present phase.
        frames: number of answered samples; with the seed, a sample's number decides whether it is explored.
        round: the round whose exits are in force, 0 for the global exits.
        threshold: the threshold in force: thr_conf, or thr'_conf after it was raised.
        seq_at_round: last sequence number that was stored when the last completed round began.
        began_at_seq: last sequence number that was stored when the present round began.
        asked: why a round was asked for; empty where none was.
        retry_at_frame: after a round was given up, no other begins before this frame.
        attempts: rounds in a row that began and neither ended nor were given up, since their process ended in them.
        recent_early: for each of the latest samples, 1 where an early exit answered and 0 where the last exit did.
        waiting: cause of the last decision not to personalise, so that it is logged only once.
    """

    phase: Phase = Phase.INFERENCE
    frames: int = 0
    round: int = 0
    threshold: float
    seq_at_round: int = 0
    began_at_seq: int = 0
    asked: str = ""
    retry_at_frame: int = 0
    attempts: int = 0
    recent_early: tuple[int, ...] = ()
    waiting: str = ""
