"""The file of a round's exits in a device's store: safetensors, named by the round and a digest of the content.

Where a round changed classifiers alone, as the fast schedule and the user's class frequencies do, the file holds these
alone. All else is the model's own: `state.json` names the fingerprint of it, and `exit_store.py` fills it in.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.multi_exit.exit_weights import ExitWeights, classifier_names, heads_fingerprint, on_these_heads

_SHIFTS = "shifts"
"""Name of the shifts' tensor, beside those of the exits' weights."""
_NAME = re.compile(r"exits-\d{6,}-([0-9a-f]{8})\.safetensors")


def is_exits_file(name: str) -> bool:
    """Return whether a file of a store is one of exits."""
    return _NAME.fullmatch(name) is not None


def write_exits(folder: Path, round_number: int, exits: ExitWeights, shifts: NDArray[np.float32] | None) -> str:
    """Write exits and what class frequencies add to them, for this user's eyes only, and return the file's name.

    Raises:
        OSError: the disk is full or not writable.
    """
    tensors = safetensors.numpy.save(exits if shifts is None else {**exits, _SHIFTS: shifts})
    # the digest: another run's round of the same number must not overwrite what state.json still names
    name = f"exits-{round_number:06d}-{_digest(tensors)}.safetensors"
    write_bytes_atomically(folder / name, tensors, private=True)
    return name


def read_exits(folder: Path, name: str, policy: ExitPolicy) -> tuple[ExitWeights, NDArray[np.float32] | None]:
    """Return the exits in a file, and what class frequencies add to them.

    Raises:
        ValueError: the file is no file of exits, or damaged.
        FileNotFoundError: it is gone.
    """
    digest = _NAME.fullmatch(name)
    path = folder / name
    if digest is None or (path.exists() and not path.is_file()):
        raise ValueError(f"{name!r} is no file of exits")
    data = path.read_bytes()
    if _digest(data) != digest[1]:
        raise ValueError(f"{name} has been changed or damaged, its content is not that of the digest in its name")
    tensors = safetensors.numpy.load(data)
    odd = next((key for key, array in tensors.items() if not np.isfinite(array).all()), None)
    if odd is not None:
        raise ValueError(f"{odd[:80]!r} in {name} holds a number that is not finite")
    shifts = tensors.pop(_SHIFTS, None)
    if shifts is not None:
        _check_shifts(shifts, policy, tensors)
    return tensors, shifts


def whole_exits(classifiers: ExitWeights, sits_on: str, own: ExitWeights, folder: Path) -> ExitWeights:
    """Return the exits whose classifiers a store holds, with all else from the model's own.

    Args:
        classifiers: that the store holds.
        sits_on: the fingerprint of the heads that they were fitted on.
        own: the exits of the model in use.
        folder: of the store, for the error.

    Raises:
        StoreError: they were fitted on the heads of another model.
        ModelFileError: they are no classifiers of these exits.
    """
    found = heads_fingerprint(own)
    if found != sits_on:
        raise StoreError(
            f"the classifiers in {folder} were fitted on the exits of another model ({sits_on[:12]}, expected "
            f"{found[:12]}), whose convolutions they need: use that model, or another folder."
        )
    return on_these_heads(own, classifiers)


def _digest(tensors: bytes) -> str:
    return hashlib.sha256(tensors).hexdigest()[:8]


def _check_shifts(shifts: NDArray[Any], policy: ExitPolicy, exits: ExitWeights) -> None:
    expected = (policy.num_exits + 1, len(exits[classifier_names(exits, 0)[1]]))
    if shifts.dtype != np.float32 or shifts.shape != expected:
        raise ValueError(f"its class frequencies are {shifts.dtype} {shifts.shape}, expected float32 {expected}")
