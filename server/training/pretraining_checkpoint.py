"""The checkpoint of a pretraining: one safetensors file, replaced atomically after each epoch.

Tensors: `network/NAME` and `best/NAME`, the weights now and in the best epoch, and `momentum/NAME`, the optimiser's.
The header's `state` is JSON: what determines the run, and the history. No state of a random generator is in it:
each epoch derives its own from (seed, epoch).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.multi_exit.checked_json import arrays_header, checked_state, parse_json_object
from persephonee.server.errors import PretrainingError


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """What one epoch of pretraining gave."""

    epoch: int
    """From 1."""

    learning_rate: float
    """At the end of the epoch."""

    train_loss: float
    """Mean over the epoch's batches, in nats."""

    validation_accuracy: tuple[float, ...]
    """Per exit, the last exit last, in [0, 1], on users whom training never saw."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything that the next epoch needs."""

    identity: Mapping[str, Any]
    """What determines the run: settings, initial weights, users, samples; JSON values."""

    history: tuple[EpochRecord, ...]
    network: dict[str, Tensor]
    best: dict[str, Tensor]
    momentum: dict[str, Tensor]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file at `path` atomically.

    Raises:
        OSError: the folder cannot be written; the previous checkpoint still stands.
    """
    parts = {"network": checkpoint.network, "best": checkpoint.best, "momentum": checkpoint.momentum}
    tensors = {f"{part}/{name}": t.detach().cpu().contiguous() for part, ts in parts.items() for name, t in ts.items()}
    state = {"identity": dict(checkpoint.identity), "history": [asdict(record) for record in checkpoint.history]}
    header = arrays_header(json.dumps(state), {name: tensor.numpy() for name, tensor in tensors.items()})
    write_bytes_atomically(path, safetensors.torch.save(tensors, metadata=header))


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> Checkpoint:
    """Read the checkpoint of the run that `identity` describes.

    Raises:
        PretrainingError: the file is cut off, or belongs to another run; the difference is named.
    """
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "momentum": {}}
    try:
        tensors = safetensors.torch.load_file(path)
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        state = parse_json_object(checked_state(header, arrays))
        for key, tensor in tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = tensor
        records = [_record(values) for values in state["history"]]
        stored: dict[str, Any] = state["identity"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise PretrainingError(
            f"The checkpoint {path} cannot be read ({error}); delete it, or train again with --overwrite."
        ) from None
    wanted = json.loads(json.dumps(dict(identity)))
    for key in sorted(wanted.keys() | stored.keys()):
        if stored.get(key) != wanted.get(key):
            raise PretrainingError(
                f"The checkpoint {path} is of another run: its {key} is {stored.get(key)}, here it is "
                f"{wanted.get(key)}; give the same options again, or train anew with --overwrite."
            )
    return Checkpoint(identity=stored, history=tuple(records), **parts)


def momentum_of(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's momentum by the names of the parameters."""
    states = {name: optimiser.state.get(parameter, {}) for name, parameter in network.named_parameters()}
    return {name: state["momentum_buffer"] for name, state in states.items() if "momentum_buffer" in state}


def restore_momentum(network: nn.Module, optimiser: torch.optim.Optimizer, momentum: Mapping[str, Tensor]) -> None:
    """Give the optimiser the momentum that `momentum_of` took, in place."""
    for name, parameter in network.named_parameters():
        if name in momentum:
            optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum[name])


def _record(values: dict[str, Any]) -> EpochRecord:
    return EpochRecord(**{**values, "validation_accuracy": tuple(values["validation_accuracy"])})
