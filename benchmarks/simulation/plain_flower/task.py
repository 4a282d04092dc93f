"""Model, data, training and testing of the plain Flower app."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import Partitions, to_float
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network

Loader = DataLoader[Any]


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What a baseline trains, read from a JSON file.

    Attributes:
        model: path of the global model's folder.
        sources: where its backbone may come from.
        data: a flat `DataSettings`.
        users: ids of the users who personalise.
        epochs, learning_rate, momentum, batch_size: the paper's schedule.
        seed: determines the split of a user's samples.
    """

    model: str
    sources: tuple[str, ...]
    data: dict[str, Any]
    users: tuple[str, ...]
    epochs: int = 10
    learning_rate: float = 0.01
    momentum: float = 0.9
    batch_size: int = 32
    seed: int = 0


@functools.lru_cache
def read_settings(path: str) -> TaskSettings:
    """Return the settings that a JSON file holds."""
    values = json.loads(Path(path).read_text())
    return TaskSettings(**{**values, "sources": tuple(values["sources"]), "users": tuple(values["users"])})


@functools.lru_cache
def load_model(model: str, sources: tuple[str, ...]) -> MultiExitNetwork:
    """Return the network with a frozen backbone."""
    return load_network(Path(model), sources)[0].freeze_backbone()


@functools.lru_cache
def open_data(path: str) -> Partitions:
    """Open the data once per process."""
    return open_partitions(DataSettings.from_flat(read_settings(path).data))


def load_data(path: str, user: str) -> tuple[Loader, Loader]:
    """Return a user's samples to train on and to test on."""
    settings, partitions = read_settings(path), open_data(path)
    samples = partitions.load_partition(partitions.client_ids.index(user))
    split = split_samples(samples, SplitSettings(), settings.seed)
    images = to_float(samples.images)
    train, test = (
        TensorDataset(images[part], torch.as_tensor(samples.labels[part])) for part in (split.train, split.test)
    )
    return DataLoader(train, batch_size=settings.batch_size, shuffle=True), DataLoader(test, batch_size=128)


def train(network: MultiExitNetwork, loader: Loader, settings: TaskSettings) -> None:
    """Train the exits with the sum of their cross-entropies."""
    criterion = nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(network.heads.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    network.train()
    for _ in range(settings.epochs):
        for images, labels in loader:
            if len(labels) == 1:
                # BatchNorm cannot normalise a single sample on a 1x1 map
                continue
            optimiser.zero_grad()
            exits = network(images)[:-1]
            loss = torch.stack([criterion(logits, labels) for logits in exits]).sum()
            loss.backward()
            optimiser.step()


@torch.no_grad()
def test(network: MultiExitNetwork, loader: Loader) -> list[float]:
    """Return the accuracy of each early exit, in [0, 1]."""
    network.eval()
    correct, count = torch.zeros(network.num_exits), 0
    for images, labels in loader:
        correct += torch.stack([(logits.argmax(dim=1) == labels).sum() for logits in network(images)[:-1]])
        count += len(labels)
    accuracies: list[float] = (correct / count).tolist()
    return accuracies
