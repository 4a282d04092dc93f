"""Users' streams with a real shift in the middle, for the lifelong experiment.

QMNIST: a device that several census employees use (hsf_id 0) and that then goes to high-school students (hsf_id 4), all
of whom the global model has never seen. Built-in writers: one writer, who changes hand.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from persephonee.data_partitions.errors import NotEnoughUsersError
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.sources.parquet_users import ParquetUsers
from persephonee.data_partitions.synthetic.synthetic_writers import SyntheticWriters
from persephonee.data_partitions.user_splits import choose_users

EMPLOYEES, STUDENTS = "hsf_id=0", "hsf_id=4"
SAMPLES_PER_DAY = 10
LEAST_SAMPLES = 80
"""Writers of QMNIST with fewer samples are left out, because their halves would be too short."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """One device's life.

    Attributes:
        name: the device's name.
        images: uint8 [N, C, H, W], in the order of their arrival.
        labels: int64 [N].
        shift: number of the first sample after the shift.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    shift: int


def qmnist_streams(path: Path, trained_on: Collection[str], count: int, people: int, seed: int) -> list[Stream]:
    """Return devices that `people` employees use in the first half and `people` students in the second.

    Args:
        path: the parquet file with `writer_id`, `character` and `hsf_id`.
        trained_on: writers whom the global model has seen.
        count: number of devices.
        people: writers in each half.
        seed: determines the choice of writers, of whom none uses two devices, and the order of their samples.

    Raises:
        NotEnoughUsersError: fewer held-out writers than that.
    """
    users = ParquetUsers(path, user_column="writer_id", label_column="character")
    ranked = choose_users(users.client_ids, None, seed, trained_on)
    generator = torch.Generator().manual_seed(seed)
    # a fixed order that owes nothing to the ids' alphabet
    order = [ranked[i] for i in torch.randperm(len(ranked), generator=generator).tolist()]
    halves: dict[str | None, list[UserSamples]] = {EMPLOYEES: [], STUDENTS: []}
    for index in (users.client_ids.index(user) for user in order):
        if users.counts[index] >= LEAST_SAMPLES and any(len(half) < count * people for half in halves.values()):
            samples = users.load_partition(index)
            halves.get(samples.domain, []).append(samples)
    for domain, half in halves.items():
        if len(half) < count * people:
            raise NotEnoughUsersError(
                f"{count} devices of {people} writers were asked for, and there are {len(half)} held-out writers of "
                f"{domain} with {LEAST_SAMPLES} samples; ask for fewer."
            )
    before, after = ([half[i * people : (i + 1) * people] for i in range(count)] for half in halves.values())
    return [_joined(f"device {i}", before[i], after[i], generator) for i in range(count)]


def synthetic_streams(trained_on: Collection[str], count: int, samples: int, seed: int) -> list[Stream]:
    """Return built-in writers who write `samples` characters in their own hand and as many in another.

    Args:
        trained_on: writers whom the global model has seen.
        count: number of writers.
        samples: characters in each half.
        seed: determines the choice of writers and the order of their samples.
    """
    writers = SyntheticWriters()
    chosen = choose_users(writers.client_ids, count, seed, trained_on)
    generator = torch.Generator().manual_seed(seed)
    streams = []
    for client_id in chosen:
        index = writers.client_ids.index(client_id)
        halves = [[writers.writer_changes_hand(index, hand, samples)] for hand in (0, 1)]
        streams.append(_joined(client_id, halves[0], halves[1], generator))
    return streams


def _joined(name: str, before: list[UserSamples], after: list[UserSamples], generator: torch.Generator) -> Stream:
    images, labels = [], []
    for half in (before, after):
        all_images, all_labels = np.concatenate([s.images for s in half]), np.concatenate([s.labels for s in half])
        order = torch.randperm(len(all_labels), generator=generator).numpy()
        images.append(all_images[order])
        labels.append(all_labels[order])
    return Stream(name=name, images=np.concatenate(images), labels=np.concatenate(labels), shift=len(labels[0]))
