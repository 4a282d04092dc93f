"""What each user's personal exits answer on the samples that trained nothing, kept in a file between measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.exit_shifts import with_last_shift
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule, loss_weights
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.network import MultiExitNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class UserOutputs:
    """One user after a round.

    Attributes:
        user: natural id.
        logits: of all exits on the calibration and test samples, float32 [M+1, N, K]; calibration samples come first.
        labels: int64 [N].
        num_calibration: how many of the N calibrate.
        unfamiliar: of all exits on inputs of another kind, made of the test samples, float32 [M+1, n, K] by kind.
    """

    user: str
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    num_calibration: int
    unfamiliar: dict[str, NDArray[np.float32]]


def inverted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with dark and light exchanged."""
    return 255 - images


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with normal noise of a standard deviation of 40 grey values."""
    noise = 40 * torch.randn(images.shape, generator=generator)
    return torch.clamp(images + noise, 0, 255).to(torch.uint8)


UNFAMILIAR = {"inverted": inverted, "noisy": noisy}


def exit_outputs(
    network: MultiExitNetwork,
    partitions: Partitions,
    users: Sequence[str],
    *,
    labelled: bool,
    schedule: Schedule,
    file: Path,
) -> list[UserOutputs]:
    """Return the outputs of each user who has enough samples, from `file` where it is there.

    Args:
        network: the global model, frozen.
        partitions: that holds the users.
        users: natural ids.
        labelled: whether the device may use labels.
        schedule: "paper" or "fast".
        file: .npz of this very choice.
    """
    if not file.exists():
        made = [_one(network, partitions, user, labelled, schedule) for user in users]
        arrays: dict[str, Any] = {}
        for one in (one for one in made if one is not None):
            arrays[f"{one.user}/logits"], arrays[f"{one.user}/labels"] = one.logits, one.labels
            arrays[f"{one.user}/num_calibration"] = np.array(one.num_calibration)
            arrays.update({f"{one.user}/{kind}": logits for kind, logits in one.unfamiliar.items()})
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)
    with np.load(file) as stored:
        names = [name.removesuffix("/logits") for name in stored.files if name.endswith("/logits")]
        return [
            UserOutputs(
                user=name,
                logits=stored[f"{name}/logits"],
                labels=stored[f"{name}/labels"],
                num_calibration=int(stored[f"{name}/num_calibration"]),
                unfamiliar={kind: stored[f"{name}/{kind}"] for kind in UNFAMILIAR},
            )
            for name in names
        ]


def _one(
    network: MultiExitNetwork, partitions: Partitions, user: str, labelled: bool, schedule: Schedule
) -> UserOutputs | None:
    samples = partitions.load_partition(partitions.client_ids.index(user))
    labels = 1.0 if labelled else 0.0
    try:
        split = split_samples(samples, SplitSettings(labels=labels), seed=0)
    except UserTooSmallError:
        return None
    settings = PersonalisationSettings(schedule=schedule, rule="paper", weights=loss_weights("auto", labels))
    features = compute_features(network, samples.images)
    done = personalise(network, samples, split, settings, seed=0, features=features)
    kept = network.exit_state()
    network.load_exit_state(done.exit_weights)
    chosen = split.judged
    last_shift = None if done.shifts is None else done.shifts[-1]
    outputs = run_exits(network.heads, with_last_shift(features, last_shift), chosen)
    generator = torch.Generator().manual_seed(0)
    others = {
        kind: with_last_shift(
            compute_features(network, make(torch.from_numpy(samples.images[split.test]), generator)), last_shift
        )
        for kind, make in UNFAMILIAR.items()
    }
    unfamiliar = {
        kind: run_exits(network.heads, cache, np.arange(len(split.test))).logits for kind, cache in others.items()
    }
    network.load_exit_state(kept)
    return UserOutputs(
        user=samples.client_id,
        logits=outputs.logits,
        labels=samples.labels[chosen],
        num_calibration=len(split.calibration),
        unfamiliar=unfamiliar,
    )
