"""A device's durable store: personal exits, the policy in force, and what the next round starts from.

`state.json` is replaced last and names the file of the exits, so a kill at any moment leaves the exits and the policy
of one round, never a mixture. A federated round keeps what it started from beside its result: a server that was killed
asks for the same round again, and its clients must start it from the same exits. The parts that the user's samples
have had are there too, as long as the store is: whoever splits them for a round that goes on from these exits has to
know them.

Exits that are the model's own up to their classifiers are stored as classifiers alone (`exit_files.py`), and are whole
again once they are loaded: whoever saves or loads says what the model's own exits are.

Only this user can read the files. What they hold is checked against digests: of the exits the one in the file's name,
of `state.json` its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import safetensors
from numpy.typing import NDArray

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation.exit_files import is_exits_file, read_exits, whole_exits, write_exits
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.data_partitions.known_parts import KnownParts
from persephonee.multi_exit.atomic_files import make_private_folder, remove_leftovers
from persephonee.multi_exit.checked_json import read_json_object, without_digest, write_with_digest
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_weights import (
    ExitWeights,
    as_arrays,
    classifiers_on,
    heads_fingerprint,
)

if TYPE_CHECKING:
    from persephonee.multi_exit.exit_weights import AnyExitWeights

FORMAT = 3
"""Format 1 knew nothing of the user's class frequencies, and 2 stored whole heads always; both are read too."""
STATE_NAME = "state.json"
LOCK_NAME = ".exits.lock"
LOCK_S = 10.0
"""How long a save waits for another one; both take well under a second."""
_NAMES = ("client_id", "run", "backbone_fingerprint", "graphs_fingerprint")
_ON = "classifiers_on"
"""In state.json: the fingerprint of what the stored classifiers sit on; without it whole heads are stored."""
Repeated = tuple[str, int]  # a run and a round of it
_DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError)


@dataclass(frozen=True, kw_only=True)
class StoredExits:
    """What a store holds.

    Attributes:
        client_id: whose exits they are.
        round: the round that made them.
        backbone_fingerprint: of the backbone that they belong to.
        graphs_fingerprint: of the graphs on which the round ran; empty on PyTorch, and in stores of earlier versions.
        policy: in force.
        exit_weights: arrays named as `MultiExitNetwork.exit_state` names them; its tensors are taken too.
        run: the federated run that the round belonged to; empty for a round of the device's own.
        parts: what the user's samples have served for, in this round and before.
        shifts: what the user's class frequencies add to the logits of the M+1 exits, float32 [M+1, K]: the early exits'
            classifiers have it in their bias, and the last exit's is added to what it returns. None adds nothing.
    """

    client_id: str
    round: int
    backbone_fingerprint: str
    policy: ExitPolicy
    exit_weights: ExitWeights
    run: str = ""
    graphs_fingerprint: str = ""
    parts: KnownParts = field(default_factory=KnownParts)
    shifts: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "exit_weights", as_arrays(self.exit_weights))

    @property
    def last_shift(self) -> NDArray[np.float32] | None:
        """What is added to the last exit's logits, [K]; None where nothing is."""
        return None if self.shifts is None else self.shifts[-1]


class ExitStore:
    """The store of one user in one folder.

    Args:
        folder: made when the first round is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: bytes | None = None

    def load(
        self,
        backbone_fingerprint: str,
        own: "AnyExitWeights",
        client_id: str | None,
        repeating: Repeated | None = None,
        *,
        graphs: str = "",
    ) -> StoredExits | None:
        """Return what the last round saved, or None before the first one.

        Args:
            backbone_fingerprint: of the model in use.
            own: the exits of this model, as its `exit_state` returns them; stored classifiers are put on them.
            client_id: the user in question; None for whoever's exits these are.
            graphs: fingerprint of the graphs in use; empty on PyTorch, which knows the backbone by its weights.
            repeating: a run and a round that is about to start: what this round saved when it ran before is left out.

        Raises:
            StoreError: the store is damaged, another user's, or belongs to another model.
        """
        stored, sits_on = self._read(repeating)
        if stored is None:
            return None
        if stored.backbone_fingerprint != backbone_fingerprint:
            raise StoreError(
                f"the exits in {self.folder} belong to another model ({stored.backbone_fingerprint[:12]}, expected "
                f"{backbone_fingerprint[:12]}): use that model, or another folder."
            )
        if graphs and stored.graphs_fingerprint not in ("", graphs):
            raise StoreError(
                f"the exits in {self.folder} were made on other graphs ({stored.graphs_fingerprint[:12]}, expected "
                f"{graphs[:12]}): use those, --runtime torch, or another folder."
            )
        if client_id is not None and stored.client_id != client_id:
            raise StoreError(
                f"the exits in {self.folder} are of user {stored.client_id!r}, not {client_id!r}: use another folder."
            )
        if not sits_on:
            return stored
        try:
            return replace(stored, exit_weights=whole_exits(stored.exit_weights, sits_on, as_arrays(own), self.folder))
        except ModelFileError as error:
            raise self._damaged(error) from None

    def known_parts(self) -> KnownParts:
        """Return what the user's samples have served for; nothing before the first round.

        Raises:
            StoreError: the store is damaged.
        """
        try:
            return _parts_of(self._state())
        except StoreError:
            raise
        except _DAMAGES as error:
            raise self._damaged(error) from None

    def save(self, stored: StoredExits, own: "AnyExitWeights") -> None:
        """Put a round's exits and policy in force, atomically.

        Args:
            stored: what to store.
            own: the exits of the model in use, as its `exit_state` returns them.

        Raises:
            StoreError: another process is saving, or has saved since this object loaded what the round began with.
            OSError: the disk is full or not writable; the previous round stays in force.
        """
        make_private_folder(self.folder)
        with self._locked():
            remove_leftovers(self.folder)
            self._write(stored, as_arrays(own))

    def _write(self, stored: StoredExits, own: ExitWeights) -> None:
        before = next(iter(self._entries((stored.run, stored.round))), None) if stored.run else None
        classifiers = classifiers_on(own, stored.exit_weights)
        exits = stored.exit_weights if classifiers is None else classifiers
        name = write_exits(self.folder, stored.round, exits, stored.shifts)
        state = {
            "format": FORMAT,
            **{name: getattr(stored, name) for name in _NAMES},
            "round": stored.round,
            "policy": stored.policy.to_json(),
            "exits": name,
            _ON: "" if classifiers is None else heads_fingerprint(own),
            "before": before,
            "parts": stored.parts.to_text(),
        }
        write_with_digest(self.folder / STATE_NAME, state, private=True)
        self._seen = self._state_bytes()
        kept = {name, before["exits"] if before else name}
        for stale in self.folder.iterdir():
            if is_exits_file(stale.name) and stale.name not in kept:
                stale.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with filelock.FileLock(self.folder / LOCK_NAME, timeout=LOCK_S, mode=0o600):
                if self._seen is not None and self._seen != self._state_bytes():
                    raise StoreError(
                        f"the store in {self.folder} was changed by another process since this round began: its exits "
                        "stay in force, begin a new round."
                    )
                yield
        except filelock.Timeout:
            raise StoreError(
                f"another process is saving to the store in {self.folder}: wait for its end, and begin a new round."
            ) from None

    def _state_bytes(self) -> bytes:
        """Return state.json as it is, empty before the first round."""
        path = self.folder / STATE_NAME
        return path.read_bytes() if path.is_file() else b""

    def _state(self) -> dict[str, Any]:
        """Return what is in state.json, empty before the first round."""
        path = self.folder / STATE_NAME
        if not path.exists():
            return {}
        state = read_json_object(path)
        found = state["format"]
        if type(found) is int and found > FORMAT:
            raise StoreError(
                f"the store in {self.folder} has format {found} and this version reads {FORMAT}: a newer persephonee "
                "wrote it, install that one again."
            )
        if found not in range(1, FORMAT + 1):
            raise ValueError(f"format {found!r}, expected 1 to {FORMAT}")
        return without_digest(state)

    def _entries(self, repeating: Repeated | None) -> list[dict[str, Any]]:
        """Return what state.json says of the stored rounds, the newest first, without the round that is repeated."""
        state = self._state()
        if not state:
            return []
        before = state.pop("before", None)
        found = [state, before] if before else [state]
        if repeating is None:
            return found
        run, number = repeating
        return [entry for entry in found if entry.get("run", "") != run or entry["round"] < number]

    def _read(self, repeating: Repeated | None) -> tuple[StoredExits | None, str]:
        """Return what is stored, and the fingerprint of what it sits on where it is classifiers alone."""
        seen: bytes | None = None
        try:
            while True:
                seen = self._state_bytes()
                try:
                    found = self._read_once(repeating)
                    break
                except FileNotFoundError:
                    # a save that has ended since has removed the exits that state.json named
                    if seen == self._state_bytes():
                        raise
            self._seen = seen
            return found
        except StoreError:
            raise
        except _DAMAGES as error:
            raise self._damaged(error) from None

    def _read_once(self, repeating: Repeated | None) -> tuple[StoredExits | None, str]:
        state = next(iter(self._entries(repeating)), None)
        if state is None:
            return None, ""
        found = {"run": "", "graphs_fingerprint": "", _ON: "", **state}
        names = {key: found[key] for key in (*_NAMES, _ON)}
        if not all(isinstance(name, str) for name in names.values()) or type(state["round"]) is not int:
            raise TypeError("a value is of another type")
        sits_on = names.pop(_ON)
        policy = ExitPolicy.from_json(state["policy"])
        exits, shifts = read_exits(self.folder, Path(state["exits"]).name, policy)
        stored = StoredExits(
            **names,
            round=state["round"],
            policy=policy,
            exit_weights=exits,
            parts=_parts_of(self._state()),
            shifts=shifts,
        )
        return stored, sits_on

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store in {self.folder} is damaged ({error}): move it away, and the next round starts from "
            "the global exits."
        )


def _parts_of(state: dict[str, Any]) -> KnownParts:
    # stores of earlier versions remember none
    return KnownParts.from_text(state.get("parts", ""))
