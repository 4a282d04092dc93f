"""What the orchestrator and the counters keep in the device's database, so that a restart goes on where a kill stopped.

Facts: `state` (OrchestratorState), `validation` (Validation), `counters` (Counters). Table `explored`: the explored
samples since the last round, from which the drift detectors are fed again after a restart.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.exploration import Explored, Validation
from persephonee.clients.runtime.phases import OrchestratorState, Phase
from persephonee.multi_exit.costs import CostTable

MAX_EXPLORED = 2000
"""Explored samples that are kept; a device that is never personalised would gather them for ever."""


@dataclass(kw_only=True)
class Counters:
    """What the device has done so far, since its store was made.

    Attributes:
        frames: answered samples.
        skipped: frames that were no image for the model.
        unstored: samples that were not stored, as near-duplicates or for want of room.
        explored: samples of which the last exit was computed too.
        exits: samples by the exit that answered, M+1 numbers.
        macs: spent on answers and on exploration; training is not counted.
        original_macs: what the original network would have spent on the same samples.
        latency_ms: sum over the answered samples.
        rounds: personalisation rounds that were completed.
        refused_rounds: rounds that were refused, interrupted or failed.
        round_seconds: spent in completed rounds.
    """

    frames: int = 0
    skipped: int = 0
    unstored: int = 0
    explored: int = 0
    exits: list[int] = field(default_factory=list)
    macs: int = 0
    original_macs: int = 0
    latency_ms: float = 0.0
    rounds: int = 0
    refused_rounds: int = 0
    round_seconds: float = 0.0

    def add_answer(
        self, exit_index: int, *, is_explored: bool, latency_ms: float, policy: ExitPolicy, costs: CostTable
    ) -> None:
        """Count one answered sample.

        Args:
            exit_index: the exit that answered, in [0, M].
            is_explored: the last exit was computed too.
            latency_ms: of the answer.
            policy: under which it was given.
            costs: of the network's exits.
        """
        steps = (*policy.exits_in_use, policy.num_exits)
        macs = dict(zip(steps, costs.leaving_macs(policy.exits_in_use), strict=True))
        self.frames += 1
        self.exits[exit_index] += 1
        self.explored += is_explored
        self.macs += macs[policy.num_exits if is_explored else exit_index]
        self.original_macs += costs.original_macs
        self.latency_ms += latency_ms


class PersistentState:
    """The durable state of one device.

    Args:
        database: the device's database, open for writing.
    """

    def __init__(self, database: DeviceDatabase) -> None:
        self._database = database

    def state(self) -> OrchestratorState | None:
        """Return the orchestrator's state, None before the first start."""
        values = self._database.fact("state")
        if values is None:
            return None
        with self._of_a_device("state"):
            early, phase = tuple(values["recent_early"]), Phase(values["phase"])
            state = OrchestratorState(**{**values, "phase": phase, "recent_early": early})
            _check_types(state)
        return state

    def save_state(self, state: OrchestratorState) -> None:
        """Keep the orchestrator's state."""
        self._database.set_fact("state", asdict(state))

    def validation(self) -> Validation | None:
        """Return what the policy in force was validated with, None where it never was."""
        values = self._database.fact("validation")
        if values is None:
            return None
        with self._of_a_device("validation"):
            losses = tuple(tuple(exit) for exit in values["losses"])
            validation = Validation(**{**values, "exits": tuple(values["exits"]), "losses": losses})
            _check_types(validation)
        return validation

    def save_validation(self, validation: Validation | None) -> None:
        """Keep a new validation and forget what was explored under the old one."""
        with self._database.transaction():
            self._database.execute("DELETE FROM explored")
            self._database.set_fact("validation", None if validation is None else asdict(validation))

    def explored(self) -> list[Explored]:
        """Return the explored samples since the last round, the oldest first."""
        rows = self._database.execute("SELECT record FROM explored ORDER BY frame").fetchall()
        with self._of_a_device("explored"):
            return [_explored(json.loads(row[0])) for row in rows]

    def add_explored(self, frame: int, sample: Explored) -> None:
        """Keep an explored sample."""
        with self._database.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO explored VALUES (?, ?)", (frame, json.dumps(asdict(sample), allow_nan=False))
            )
            self._database.execute(
                "DELETE FROM explored WHERE frame IN "
                "(SELECT frame FROM explored ORDER BY frame DESC LIMIT -1 OFFSET ?)",
                (MAX_EXPLORED,),
            )

    def note_answered(self, key: str) -> None:
        """Remember a frame's name, so that a restart does not answer it again."""
        with self._database.transaction():
            self._database.execute("INSERT OR IGNORE INTO answered VALUES (?)", (key,))

    def has_answered(self, key: str) -> bool:
        """Return whether a frame's name is remembered."""
        return self._database.execute("SELECT 1 FROM answered WHERE key = ?", (key,)).fetchone() is not None

    def counters(self, num_exits: int) -> Counters:
        """Return the counters; zero before the first frame."""
        values = self._database.fact("counters")
        with self._of_a_device("counters"):
            counters = Counters(exits=[0] * (num_exits + 1)) if values is None else Counters(**values)
            _check_types(counters)
        return counters

    @contextmanager
    def _of_a_device(self, name: str) -> Iterator[None]:
        """Turn what is raised over values that no device wrote, as in a damaged file of version 1, into one error."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self._database.damaged(f"{name}: {error}") from None

    def save_counters(self, counters: Counters) -> None:
        """Keep the counters."""
        self._database.set_fact("counters", asdict(counters))


def _check_types(values: object) -> None:
    """Refuse numbers and texts that are of another type than their field, and numbers in sequences that are none."""
    for name, kind in get_type_hints(type(values)).items():
        value = getattr(values, name)
        wanted = {int: int, float: int | float, str: str}.get(kind)
        if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise TypeError(f"{name} is a {type(value).__name__}")
        if isinstance(value, list | tuple) and not all(type(one) in (int, float, tuple) for one in value):
            raise TypeError(f"{name} holds what is no number")


def _explored(values: dict[str, Any]) -> Explored:
    return Explored(**{name: tuple(value) for name, value in values.items()})
