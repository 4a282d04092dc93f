"""What each user's personal exits answer on the samples that trained nothing, kept in a file between measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.exit_shifts import with_last_shift
from persephonee.clients.personalisation.familiar_images import image_statistics
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule, loss_weights
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.experiments.risk.unfamiliar import KINDS, letters_for, stranger_to, unfamiliar_images
from persephonee.multi_exit.network import MultiExitNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """What a user's exits answer on N images.

    Attributes:
        logits: of all exits, float32 [M+1, N, K].
        labels: int64 [N], -1 for images of no class that the model knows.
        statistics: of the images, as `image_statistics` returns them, [N, 3].
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    statistics: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class UserOutputs:
    """One user after a round.

    Attributes:
        user: natural id.
        domain: that the samples come from, empty where the source knows none.
        judged: the calibration and test samples; calibration samples come first.
        num_calibration: how many of the N calibrate.
        training: statistics of the images that trained, [n, 3].
        unfamiliar: images of another kind, by kind.
    """

    user: str
    domain: str
    judged: Answered
    num_calibration: int
    training: NDArray[np.float64]
    unfamiliar: dict[str, Answered]


def exit_outputs(
    network: MultiExitNetwork,
    partitions: Partitions,
    users: Sequence[str],
    *,
    labels: float,
    schedule: Schedule,
    file: Path,
) -> list[UserOutputs]:
    """Return the outputs of each user who has enough samples, from `file` where it is there.

    Args:
        network: the global model, frozen.
        partitions: that holds the users.
        users: natural ids.
        labels: the fraction of labels that the device may use.
        schedule: "paper" or "fast".
        file: .npz of this very choice.
    """
    if not file.exists():
        made = [_one(network, partitions, user, labels, schedule) for user in users]
        arrays: dict[str, Any] = {}
        for one in (one for one in made if one is not None):
            arrays[f"{one.user}/domain"] = np.array(one.domain)
            arrays[f"{one.user}/num_calibration"] = np.array(one.num_calibration)
            arrays[f"{one.user}/training"] = one.training
            for part, answered in {"judged": one.judged, **one.unfamiliar}.items():
                arrays.update({f"{one.user}/{part}/{name}": of for name, of in vars(answered).items()})
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)
    with np.load(file) as stored:
        names = [name.removesuffix("/domain") for name in stored.files if name.endswith("/domain")]
        return [
            UserOutputs(
                user=name,
                domain=str(stored[f"{name}/domain"]),
                judged=_answered(stored, f"{name}/judged"),
                num_calibration=int(stored[f"{name}/num_calibration"]),
                training=stored[f"{name}/training"],
                unfamiliar={kind: _answered(stored, f"{name}/{kind}") for kind in KINDS},
            )
            for name in names
        ]


def _answered(stored: Any, name: str) -> Answered:
    return Answered(**{part: stored[f"{name}/{part}"] for part in ("logits", "labels", "statistics")})


def _one(
    network: MultiExitNetwork, partitions: Partitions, user: str, labels: float, schedule: Schedule
) -> UserOutputs | None:
    index = partitions.client_ids.index(user)
    samples = partitions.load_partition(index)
    try:
        split = split_samples(samples, SplitSettings(labels=labels), seed=0, names_near_duplicates=False)
    except UserTooSmallError:
        return None
    settings = PersonalisationSettings(schedule=schedule, rule="paper", weights=loss_weights("auto", labels))
    features = compute_features(network, samples.images)
    done = personalise(network, samples, split, settings, seed=0, features=features)
    kept = network.exit_state()
    network.load_exit_state(done.exit_weights)

    def answers(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Answered:
        found = with_last_shift(compute_features(network, images), done.last_shift)
        logits = run_exits(network.heads, found, np.arange(len(images))).logits
        return Answered(logits=logits, labels=labels, statistics=image_statistics(images))

    test = split.test
    others = unfamiliar_images(
        samples.images[test], samples.labels[test], stranger_to(partitions, index), letters_for(partitions, index)
    )
    outputs = UserOutputs(
        user=samples.client_id,
        domain=samples.domain or "",
        judged=answers(samples.images[split.judged], samples.labels[split.judged]),
        num_calibration=len(split.calibration),
        training=image_statistics(samples.images[split.train]),
        unfamiliar={kind: answers(*found) for kind, found in others.items()},
    )
    network.load_exit_state(kept)
    return outputs
