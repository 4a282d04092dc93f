"""What the fast schedule costs and reaches, beside the paper's.

    python -m persephonee.experiments.fast_schedule MODEL [options]

Prints, for users held out of pretraining, the mean accuracy of each exit on test samples and the CPU time of the
training alone, in ms a user: no training; the paper's ten epochs; fewer epochs at a larger step; the fast schedule;
and the fast schedule followed by an epoch of the paper's.
"""

import copy
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.feature_cache import FeatureCache, embed
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.clients.personalisation.training.exit_training import train_exits
from persephonee.clients.personalisation.training.fast_training import fit_classifiers
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import DEFAULT_SOURCES, Sources, data_settings, source_names
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.fl_app.settings.run_config import parse_labels
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.losses import UNLABELLED
from persephonee.multi_exit.storage import load_network

Train = Callable[[nn.ModuleList, FeatureCache, Tensor, Tensor, PersonalisationSettings, int], None]


def none(*_: object) -> None:
    """Leave the global exits as they are."""


def by_sgd(epochs: int, learning_rate: float) -> Train:
    """Return the paper's training with these settings."""

    def train(
        heads: nn.ModuleList,
        cache: FeatureCache,
        labels: Tensor,
        samples: Tensor,
        settings: PersonalisationSettings,
        seed: int,
    ) -> None:
        schedule = replace(settings, epochs=epochs, learning_rate=learning_rate)
        train_exits(heads, cache, labels, samples, schedule, torch.Generator().manual_seed(seed))

    return train


def fast(
    heads: nn.ModuleList,
    cache: FeatureCache,
    labels: Tensor,
    samples: Tensor,
    settings: PersonalisationSettings,
    seed: int,
) -> None:
    """Train by the fast schedule; the embedding is part of its time."""
    chosen = FeatureCache(maps=[maps[samples] for maps in cache.maps], last_logits=cache.last_logits[samples])
    fit_classifiers(heads, embed(heads, chosen), chosen.last_logits, labels[samples], settings.weights)


def fast_and_an_epoch(
    heads: nn.ModuleList,
    cache: FeatureCache,
    labels: Tensor,
    samples: Tensor,
    settings: PersonalisationSettings,
    seed: int,
) -> None:
    """Train by the fast schedule, then the whole heads for an epoch."""
    fast(heads, cache, labels, samples, settings, seed)
    by_sgd(1, 0.01)(heads, cache, labels, samples, settings, seed)


WAYS: dict[str, Train] = {
    "no training": none,
    "paper: 10 epochs at 0.01": by_sgd(10, 0.01),
    "3 epochs at 0.02": by_sgd(3, 0.02),
    "2 epochs at 0.05": by_sgd(2, 0.05),
    "fast": fast,
    "fast, then 1 epoch": fast_and_an_epoch,
}


@with_groups(data=data_settings)
def main(
    model: Annotated[Path, typer.Argument(help="Folder of the global model.")],
    *,
    data: DataSettings,
    users: Annotated[int, typer.Option(help="Held-out users.", min=1)] = 16,
    seeds: Annotated[int, typer.Option(help="Splits and orders, from 0.", min=1)] = 3,
    labels: Annotated[str, typer.Option(help="all, none or a fraction.")] = "all",
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    share = parse_labels(labels)
    network, metadata = load_network(model, source_names(sources))
    partitions = open_fitting(data, network, metadata, source_names(sources))
    held_out = [user for user in partitions.client_ids if user not in set(metadata.trained_on)][:users]
    if not held_out:
        raise ClientSettingsError(f"the model was trained on all users of {partitions.name}: take other data.")
    settings = PersonalisationSettings(weights=loss_weights("auto", share))
    accuracies: dict[str, list[Tensor]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    for user in held_out:
        samples = partitions.load_partition(partitions.client_ids.index(user))
        cache = compute_features(network.freeze_backbone(), samples.images)
        for seed in range(seeds):
            split = split_samples(samples, SplitSettings(labels=share), seed)
            given = torch.as_tensor(np.where(split.labelled, samples.labels, UNLABELLED))
            for name, train in WAYS.items():
                heads = copy.deepcopy(network.heads).requires_grad_(True)
                begin = time.process_time()
                train(heads, cache, given, torch.as_tensor(split.train), settings, seed)
                seconds[name] += time.process_time() - begin
                predictions = run_exits(heads, cache, split.test).accuracies(samples.labels[split.test])
                accuracies[name].append(torch.from_numpy(predictions))
    print(f"{len(held_out)} users, {seeds} seeds, labels {labels}; accuracy in %, the last exit last")
    for name, rows in accuracies.items():
        exits = 100 * torch.stack(rows).mean(dim=0)
        shown = " ".join(f"{value:6.2f}" for value in exits.tolist())
        print(f"{name:26} {1000 * seconds[name] / len(rows):7.1f} ms  mean {float(exits[:-1].mean()):6.2f} | {shown}")


if __name__ == "__main__":
    run_program(main)
