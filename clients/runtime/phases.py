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
    """What the orchestrator must know after a restart.

    Attributes:
        phase: now.
        frames: answered samples; it numbers them, and with the seed decides which are explored.
        round: the round whose exits are in force, 0 for the global exits.
        threshold: active, thr_conf or a raised thr'_conf.
        seq_at_round: stored samples with a larger sequence number came after the last round that was done had begun.
        began_at_seq: the same of the round that is under way.
        asked: why a round was asked for, empty where it was not.
        retry_at_frame: after a round was given up none begins before this frame.
        recent_early: of the latest samples, 1 where an early exit answered and 0 where the last did.
        waiting: cause of the last decision not to personalise, so that it is logged once.
    """

    phase: Phase = Phase.INFERENCE
    frames: int = 0
    round: int = 0
    threshold: float
    seq_at_round: int = 0
    began_at_seq: int = 0
    asked: str = ""
    retry_at_frame: int = 0
    recent_early: tuple[int, ...] = ()
    waiting: str = ""
