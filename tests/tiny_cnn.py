"""A CNN of four blocks on 12 px images, and users whose two classes it learns in seconds."""

import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from persephonee.data_partitions.samples import UserSamples

NAME = "tiny_cnn_of_the_tests:build"
SOURCE = NAME.split(":")[0]
SIDE = 12


class Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.normalisation = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return torch.relu(self.normalisation(self.convolution(x)))


def build(num_classes: int, in_channels: int) -> nn.Module:
    blocks = [Block(in_channels, 8, 1), Block(8, 8, 2), Block(8, 12, 1), Block(12, 16, 2)]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, num_classes)]
    return nn.Sequential(*blocks, *tail)


_module = types.ModuleType(SOURCE)
_module.build = build
sys.modules[SOURCE] = _module


def user_images(user: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Upright (0) and level (1) bars on white paper, each user with a shade of ink."""
    generator = np.random.default_rng(user)
    labels = generator.integers(0, 2, count)
    images = np.full((count, SIDE, SIDE), 255, dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        place, start = generator.integers(2, SIDE - 2), generator.integers(0, 4)
        bar = (slice(start, start + 7), slice(place, place + 2))
        image[bar if label == 0 else bar[::-1]] = generator.integers(0, 60 + 10 * (user % 5))
    return images, labels.astype(np.int64)


class TinyUsers:
    """Partitions in memory."""

    name = "tiny"
    num_classes = 2
    class_names = None
    image_shape = (1, SIDE, SIDE)

    def __init__(self, users: int = 12, samples: int = 24) -> None:
        self.client_ids = tuple(f"u{user:02d}" for user in range(users))
        self.num_partitions = users
        self.counts = (samples,) * users

    def load_partition(self, index: int) -> UserSamples:
        images, labels = user_images(index, self.counts[index])
        return UserSamples(
            client_id=self.client_ids[index],
            images=torch.from_numpy(images).unsqueeze(1),
            labels=torch.from_numpy(labels),
        )


def write_parquet(path: Path, users: int = 12, samples: int = 24) -> Path:
    """Write the same users as a Hugging Face style parquet with pixels as nested lists."""
    rows: dict[str, list] = {"image": [], "writer_id": [], "character": []}
    for user in range(users):
        images, labels = user_images(user, samples)
        rows["image"] += images.tolist()
        rows["writer_id"] += [f"u{user:02d}"] * samples
        rows["character"] += labels.tolist()
    pq.write_table(pa.table(rows), path)
    return path
