"""The samples of many users in one table, drawn batch by batch to train and to validate the global model.

Images stay uint8 until a batch needs them: 48,000 digits of 28x28 px take 38 MB, as floats they would take 150.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from persephonee.data_partitions.samples import Partitions, to_float
from persephonee.server.errors import PretrainingError

ROTATION_DEGREES = 10.0
SCALING = 0.1
SHEAR = 0.15
SHIFT = 0.07
"""Of the image's side: 2 px of 28."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleTable:
    """Samples of many users, one after the other."""

    images: Tensor
    """uint8, shape [N, C, H, W]."""

    labels: Tensor
    """int64, shape [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def memory_bytes(self) -> int:
        """How much memory the table takes, in bytes."""
        return self.images.nbytes + self.labels.nbytes

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of all images and labels in their order."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


def gather_samples(
    partitions: Partitions,
    client_ids: Sequence[str],
    max_samples: int | None = None,
    seed: int = 0,
    loaded: Callable[[int, int], None] = lambda done, total: None,
) -> SampleTable:
    """Load all samples of some users.

    Args:
        partitions: where the users are.
        client_ids: natural ids; the table follows their order.
        max_samples: keep a random choice of this many in all; None keeps everything.
        seed: determines that choice.
        loaded: called with the number of users loaded so far and of all users.

    Raises:
        PretrainingError: no users were given, or one of them is not in the data.
    """
    index_of = {client_id: index for index, client_id in enumerate(partitions.client_ids)}
    unknown = [client_id for client_id in client_ids if client_id not in index_of]
    if unknown:
        raise PretrainingError(f"{partitions.name} has no user {unknown[0]}; take users of the same data.")
    if not client_ids:
        raise PretrainingError(f"No user of {partitions.name} is left to train or to validate on; take more users.")
    images, labels = [], []
    for position, client_id in enumerate(client_ids):
        samples = partitions.load_partition(index_of[client_id])
        images.append(torch.as_tensor(samples.images))
        labels.append(torch.as_tensor(samples.labels))
        loaded(position + 1, len(client_ids))
    table = SampleTable(images=torch.cat(images), labels=torch.cat(labels))
    if max_samples is None or len(table) <= max_samples:
        return table
    chosen = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:max_samples].sort().values
    return SampleTable(images=table.images[chosen], labels=table.labels[chosen])


def training_batches(
    table: SampleTable,
    batch_size: int,
    augmentation: str,
    generator: torch.Generator,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch in a random order: float images [B, C, H, W] in [0, 1] and labels [B].

    The last samples of the order, fewer than a batch, wait for another epoch: BatchNorm cannot learn from a batch
    of one, and small batches would shake its statistics.

    Args:
        table: the samples.
        batch_size: B; a smaller table makes a single batch of everything.
        augmentation: "none", "shift" or "affine".
        generator: of the CPU; determines the order and the augmentation.
        device: where the batches are made and returned; None takes the CPU.
    """
    order = torch.randperm(len(table), generator=generator)
    for index in range(num_batches(table, batch_size)):
        chosen = order[index * batch_size : (index + 1) * batch_size]
        images, labels = table.images[chosen].to(device), table.labels[chosen].to(device)
        yield augment(to_float(images), augmentation, generator), labels


def num_batches(table: SampleTable, batch_size: int) -> int:
    """Return the number of batches that an epoch takes, at least one."""
    return max(1, len(table) // batch_size)


def augment(images: Tensor, augmentation: str, generator: torch.Generator) -> Tensor:
    """Return float images [B, C, H, W], each moved a little, as another hand or another scan would.

    "affine" rotates by up to 10 degrees, scales by up to 10 %, slants and shifts; "shift" only shifts, by up to 7 %
    of the side. The paper's colour at the edge continues outwards. Uniform in these ranges, independent per image.
    """
    if augmentation == "none":
        return images
    extent = 1.0 if augmentation == "affine" else 0.0
    uniform = 2 * torch.rand(len(images), 5, generator=generator) - 1
    angle = uniform[:, 0] * (extent * math.radians(ROTATION_DEGREES))
    scale = torch.exp(-uniform[:, 1] * (extent * SCALING))
    slant = uniform[:, 2] * (extent * SHEAR)
    # grid coordinates run from -1 to 1 over the side
    shift = uniform[:, 3:] * (2 * SHIFT)
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = [cosine, slant * cosine - sine, shift[:, 0], sine, slant * sine + cosine, shift[:, 1]]
    grid = functional.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    grid = grid.to(images.device)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
