"""A device's durable store: personal exits, the policy in force, and what the next round starts from.

`state.json` is replaced last and names the file of the exits, so a kill at any moment leaves the exits and the policy
of one round, never a mixture. A federated round keeps what it started from beside its result: a server that was killed
asks for the same round again, and its clients must start it from the same exits. The parts that the user's samples
have had are there too, as long as the store is: whoever splits them for a round that goes on from these exits has to
know them.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.data_partitions.known_parts import KnownParts
from persephonee.multi_exit.atomic_files import write_bytes_atomically, write_json_atomically

FORMAT = 1
STATE_NAME = "state.json"
_DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError)


@dataclass(frozen=True, kw_only=True)
class StoredExits:
    """What a store holds.

    Attributes:
        client_id: whose exits they are.
        round: the round that made them.
        backbone_fingerprint: of the backbone that they belong to.
        policy: in force.
        exit_weights: tensors named as `MultiExitNetwork.exit_state` names them.
        run: the federated run that the round belonged to; empty for a round of the device's own.
        parts: what the user's samples have served for, in this round and before.
    """

    client_id: str
    round: int
    backbone_fingerprint: str
    policy: ExitPolicy
    exit_weights: dict[str, Tensor]
    run: str = ""
    parts: KnownParts = field(default_factory=KnownParts)


class ExitStore:
    """The store of one user in one folder.

    Args:
        folder: made when the first round is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(
        self, backbone_fingerprint: str, client_id: str | None, repeating: tuple[str, int] | None = None
    ) -> StoredExits | None:
        """Return what the last round saved, or None before the first one.

        Args:
            backbone_fingerprint: of the model in use.
            client_id: the user in question; None for whoever's exits these are.
            repeating: a run and a round that is about to start: what this round saved when it ran before is left out.

        Raises:
            StoreError: the store is damaged, another user's, or belongs to another model.
        """
        stored = self._read(repeating)
        if stored is None:
            return None
        if stored.backbone_fingerprint != backbone_fingerprint:
            raise StoreError(
                f"the exits in {self.folder} belong to another model ({stored.backbone_fingerprint[:12]}, expected "
                f"{backbone_fingerprint[:12]}): use that model, or another folder."
            )
        if client_id is not None and stored.client_id != client_id:
            raise StoreError(
                f"the exits in {self.folder} are of user {stored.client_id!r}, not {client_id!r}: use another folder."
            )
        return stored

    def known_parts(self) -> KnownParts:
        """Return what the user's samples have served for; nothing before the first round.

        Raises:
            StoreError: the store is damaged.
        """
        try:
            return _parts_of(self._state())
        except _DAMAGES as error:
            raise self._damaged(error) from None

    def save(self, stored: StoredExits) -> None:
        """Put a round's exits and policy in force, atomically.

        Raises:
            OSError: the disk is full or not writable; the previous round stays in force.
        """
        tensors = safetensors.torch.save(stored.exit_weights)
        # the digest: another run's round of the same number must not overwrite what state.json still names
        name = f"exits-{stored.round:06d}-{hashlib.sha256(tensors).hexdigest()[:8]}.safetensors"
        before = next(iter(self._entries((stored.run, stored.round))), None) if stored.run else None
        write_bytes_atomically(self.folder / name, tensors)
        state = {
            "format": FORMAT,
            "client_id": stored.client_id,
            "run": stored.run,
            "round": stored.round,
            "backbone_fingerprint": stored.backbone_fingerprint,
            "policy": stored.policy.to_json(),
            "exits": name,
        }
        write_json_atomically(self.folder / STATE_NAME, {**state, "before": before, "parts": stored.parts.to_text()})
        kept = {name, before["exits"] if before else name}
        for stale in self.folder.glob("exits-*.safetensors"):
            if stale.name not in kept:
                stale.unlink(missing_ok=True)

    def _state(self) -> dict[str, Any]:
        """Return what is in state.json, empty before the first round."""
        path = self.folder / STATE_NAME
        if not path.exists():
            return {}
        state: dict[str, Any] = json.loads(path.read_text())
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}, expected {FORMAT}")
        return state

    def _entries(self, repeating: tuple[str, int] | None) -> list[dict[str, Any]]:
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

    def _read(self, repeating: tuple[str, int] | None) -> StoredExits | None:
        try:
            state = next(iter(self._entries(repeating)), None)
            if state is None:
                return None
            return StoredExits(
                client_id=state["client_id"],
                run=state.get("run", ""),
                round=state["round"],
                backbone_fingerprint=state["backbone_fingerprint"],
                policy=ExitPolicy.from_json(state["policy"]),
                exit_weights=safetensors.torch.load_file(self.folder / Path(state["exits"]).name),
                parts=_parts_of(self._state()),
            )
        except _DAMAGES as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store in {self.folder} is damaged ({error}): move it away, and the next round starts from "
            "the global exits."
        )


def _parts_of(state: dict[str, Any]) -> KnownParts:
    # stores of earlier versions remember none
    return KnownParts.from_text(state.get("parts", ""))
