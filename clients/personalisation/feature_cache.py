"""The feature cache of PyTorch: what the exit heads see, from one pass through the frozen backbone (Sec. 3.1.3).

The backbone never changes on the device, so its output for a sample is the same in every epoch and is computed once.
"""

import copy
import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from persephonee.clients.personalisation.feature_plan import BATCH_SIZE, FeaturePlan
from persephonee.clients.personalisation.features import Indices, Logits
from persephonee.clients.personalisation.frozen_backbone import frozen_backbone
from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.exit_weights import ExitWeights, load_exit_weights
from persephonee.multi_exit.network import MultiExitNetwork


class Maps(Protocol):
    """What one head takes of N samples; a tensor [N, C, H, W] is one."""

    def __getitem__(self, samples: Tensor, /) -> Tensor:
        """Return the maps of samples [n], float32, shape [n, C, H, W]."""


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Cached features of N samples.

    Attributes:
        maps: what each of the M heads takes, shape [N, C_i, H_i, W_i], float32; tensors unless a plan says otherwise.
        last_logits: logits of the last exit, shape [N, K], float32.
        chunk: how many samples to take at a time.
        heads: of the network, whose kind the exits are of.
    """

    maps: Sequence[Maps]
    last_logits: Tensor
    chunk: int = 256
    heads: nn.ModuleList | None = None

    @property
    def last_exit_logits(self) -> Logits:
        """Logits of the last exit, as an array."""
        array: Logits = self.last_logits.cpu().numpy()
        return array

    def heads_with(self, exits: ExitWeights | nn.ModuleList) -> nn.ModuleList:
        """Return heads of the network's kind with these weights; heads of PyTorch as they are."""
        if isinstance(exits, nn.ModuleList):
            return exits
        if self.heads is None:
            raise TypeError("features without heads take heads, not weights.")
        heads = copy.deepcopy(self.heads)
        load_exit_weights(heads, exits)
        return heads

    @torch.no_grad()
    def exit_logits(self, exits: ExitWeights | nn.ModuleList, samples: Indices | Tensor) -> Logits:
        """Return what M exits answer on the cached samples with indices `samples`, [M, n, K]."""
        heads = self.heads_with(exits).eval()
        pieces = torch.as_tensor(samples).split(self.chunk)
        # in pieces, so that no second copy of all maps stands beside the cache
        early = [
            torch.cat([head(maps[piece]) for piece in pieces]) for head, maps in zip(heads, self.maps, strict=True)
        ]
        array: Logits = torch.stack(early).cpu().numpy()
        return array

    def embed(self, exits: ExitWeights | nn.ModuleList) -> tuple[Logits, ...]:
        """Return what each exit's classifier takes, with a 1 for its bias: [N, D_i + 1]."""
        return tuple(rows.cpu().numpy() for rows in embed(self.heads_with(exits), self))

    def with_last_shift(self, shift: Logits) -> Self:
        """Return the same with a shift [K] added to the last exit's logits."""
        return replace(self, last_logits=self.last_logits + torch.as_tensor(shift).to(self.last_logits.device))


class _Embedding(Protocol):
    """A head, as multi_exit/heads.py has them."""

    def embed(self, features: Tensor) -> Tensor:
        """Return what the classifier takes."""


@torch.no_grad()
def embed(heads: nn.ModuleList, features: FeatureCache) -> tuple[Tensor, ...]:
    """Return what each head's classifier takes, with a 1 for its bias: shape [N, D_i + 1]."""
    heads.eval()
    pieces = torch.arange(len(features.last_logits)).split(features.chunk)
    embedded = [
        torch.cat([cast(_Embedding, head).embed(maps[piece]) for piece in pieces])
        for head, maps in zip(heads, features.maps, strict=True)
    ]
    return tuple(torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) for rows in embedded)


@torch.no_grad()
def fill_cache(
    network: MultiExitNetwork, images: NDArray[np.uint8] | Tensor, plan: FeaturePlan | None = None
) -> FeatureCache:
    """Return the features of images, with the backbone in eval(); see `features.compute_features`."""
    images = torch.as_tensor(images)
    network.eval()
    backbone, device = frozen_backbone(network), next(network.parameters()).device
    paths = plan.paths if plan else ("memory",) * network.num_exits
    chunk = plan.chunk if plan else BATCH_SIZE
    maps = [
        _room(place, len(images), shape, device) for place, shape in zip(paths, network.feature_shapes, strict=True)
    ]
    last_logits = torch.empty(len(images), network.num_classes, device=device)
    for first in range(0, len(images), chunk):
        piece = slice(first, min(first + chunk, len(images)))
        found, last_logits[piece] = backbone.features(to_float(images[piece].to(device)))
        for room, rows in zip(maps, found, strict=True):
            if isinstance(room, Tensor | _Half | _File):
                room[piece] = rows
        del found, rows
    kept: list[Maps] = []
    source: Maps = _Images(images, device)
    stages: list[nn.Module] = []
    for room, stage in zip(maps, backbone.stages, strict=False):
        stages.append(stage)
        kept.append(room if room is not None else _Recomputed(source, list(stages), chunk))
        if room is not None:
            source, stages = room, []
    return FeatureCache(maps=tuple(kept), last_logits=last_logits, chunk=chunk if plan else 256, heads=network.heads)


def _room(place: str, count: int, shape: tuple[int, int, int], device: torch.device) -> "Tensor | _Half | _File | None":
    if place == "memory":
        return torch.empty(count, *shape, device=device, memory_format=torch.channels_last)
    if place == "half":
        return _Half(count, shape, device)
    return _File(shape, device) if place == "file" else None


class _Half:
    """Maps in float16."""

    def __init__(self, count: int, shape: tuple[int, int, int], device: torch.device) -> None:
        self._rows = torch.empty(count, *shape, dtype=torch.float16, device=device, memory_format=torch.channels_last)

    def __setitem__(self, samples: slice, rows: Tensor) -> None:
        self._rows[samples] = rows.half()

    def __getitem__(self, samples: Tensor) -> Tensor:
        return self._rows[samples].float()


class _File:
    """Maps in a temporary file without a name, so that nothing of the user's stays; only the rows asked for are read.

    A mapping of the file would count as memory of this process as soon as it is touched.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        channels, height, width = shape
        self._shape, self._device = (height, width, channels), device
        self._bytes = 4 * channels * height * width
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115, it lives as long as the cache
        weakref.finalize(self, self._file.close)

    def __setitem__(self, samples: slice, rows: Tensor) -> None:
        content = rows.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self._file.seek(samples.start * self._bytes)
        # one write may stop early where the disk is nearly full; the next one then says so
        left = content.data.cast("B")
        while left:
            left = left[self._file.write(left) :]

    def __getitem__(self, samples: Tensor) -> Tensor:
        rows = np.empty((len(samples), *self._shape), dtype=np.float32)
        for row, sample in zip(rows, samples.tolist(), strict=True):
            if os.preadv(self._file.fileno(), [row.data], sample * self._bytes) != self._bytes:
                raise OSError("the temporary file of features was cut off.")
        return torch.from_numpy(rows).permute(0, 3, 1, 2).to(self._device)


class _Images:
    """The images as floats, for what is computed from the start."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self._images, self._device = images, device

    def __getitem__(self, samples: Tensor) -> Tensor:
        rows = to_float(self._images[samples].to(self._device))
        return rows.contiguous(memory_format=torch.channels_last)


class _Recomputed:
    """Maps that are computed from those of a stage before, whenever they are asked for."""

    def __init__(self, source: Maps, stages: list[nn.Module], chunk: int) -> None:
        self._source, self._stages, self._chunk = source, stages, chunk

    @torch.no_grad()
    def __getitem__(self, samples: Tensor) -> Tensor:
        return torch.cat([nn.Sequential(*self._stages)(self._source[piece]) for piece in samples.split(self._chunk)])
