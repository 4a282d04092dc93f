"""The users of meta-learning: each one's features, computed once, since the backbone does not move."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import Partitions, to_float
from persephonee.data_partitions.seeds import torch_generator
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.training.meta_settings import MetaSettings

BATCH_SIZE = 64
MIB = 2**20
MOST_VALIDATING = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class MetaUser:
    """What the exits see of one user's N samples.

    Attributes:
        maps: for each early exit, the feature maps before its head, shape [N, C_i, H_i, W_i], float32.
        last_logits: logits of the last exit, shape [N, K].
        labels: class indices, shape [N], int64.
    """

    maps: tuple[Tensor, ...]
    last_logits: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> "MetaUser":
        """Return the samples with the indices `chosen`."""
        maps = tuple(one[chosen] for one in self.maps)
        return MetaUser(maps=maps, last_logits=self.last_logits[chosen], labels=self.labels[chosen])

    @property
    def memory_bytes(self) -> int:
        """How much memory the features take, in bytes."""
        return sum(one.nbytes for one in (*self.maps, self.last_logits))


class MetaUsers:
    """Users by id; the features of as many as fit into the settings' memory are kept."""

    def __init__(self, network: MultiExitNetwork, partitions: Partitions, settings: MetaSettings) -> None:
        self._network = network.freeze_backbone().eval()
        self._partitions = partitions
        self._settings = settings
        self._index_of = {client_id: index for index, client_id in enumerate(partitions.client_ids)}
        self._kept: dict[str, MetaUser] = {}
        self._room = settings.cache_mb * MIB

    def count(self, client_id: str) -> int:
        """Return how many samples of the user there are to learn from."""
        return min(self._partitions.counts[self._index_of[client_id]], self._settings.max_samples)

    def load(self, client_id: str) -> MetaUser:
        """Return a random choice of at most `max_samples` of the user's samples, in a random order."""
        if client_id in self._kept:
            return self._kept[client_id]
        samples = self._partitions.load_partition(self._index_of[client_id])
        order = torch.randperm(len(samples), generator=torch_generator(self._settings.seed, "samples", client_id))
        chosen = order[: self._settings.max_samples]
        user = self._features(samples.images[chosen.numpy()], samples.labels[chosen.numpy()])
        if user.memory_bytes <= self._room:
            self._kept[client_id] = user
            self._room -= user.memory_bytes
        return user

    def load_halves(self, client_ids: Sequence[str]) -> list[tuple[MetaUser, MetaUser]]:
        """Return, for each user, the samples that a device would train on and those that it would be tested on.

        Users who are too small to take part in a personalisation round are left out, and so is everyone beyond
        MOST_VALIDATING, who would take longer than the training.
        """
        halves = []
        for client_id in client_ids:
            samples = self._partitions.load_partition(self._index_of[client_id])
            try:
                split = split_samples(samples, SplitSettings(), self._settings.seed)
            except UserTooSmallError:
                continue
            parts = (split.train[: self._settings.max_samples], split.test)
            train, test = (self._features(samples.images[part], samples.labels[part]) for part in parts)
            halves.append((train, test))
            if len(halves) == MOST_VALIDATING:
                break
        return halves

    @torch.no_grad()
    def _features(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> MetaUser:
        batches = [self._network.features(to_float(batch)) for batch in torch.as_tensor(images).split(BATCH_SIZE)]
        maps = tuple(torch.cat([maps[i] for maps, _ in batches]) for i in range(self._network.num_exits))
        return MetaUser(
            maps=maps, last_logits=torch.cat([logits for _, logits in batches]), labels=torch.as_tensor(labels)
        )


def batches_of(count: int, size: int, steps: int, generator: torch.Generator) -> Sequence[Tensor]:
    """Return the indices of `steps` batches: random orders of all `count` samples, one after the other.

    Each order is cut into equal batches of at most `size`, so that no batch has a single sample.
    """
    pieces = -(-count // size)
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += torch.randperm(count, generator=generator).tensor_split(pieces)
    return batches[:steps]
