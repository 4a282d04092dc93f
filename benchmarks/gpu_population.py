"""A whole population on one device: `python -m benchmarks.gpu_population --device cuda --model MODEL DATA --out DIR`.

All exits of all users are trained and tested: images go up, the frozen backbone runs once over a cohort's samples, and
the exits learn from the features. The data lies in memory before the clock starts: the built-in writers draw their
samples, which another data set would read. The share of the device's rate is that of the plan's multiply-adds over
what a product of two large float32 matrices reaches here.
"""

import copy
import functools
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor, nn

from benchmarks import schedules
from benchmarks.bench_models import SOURCES
from benchmarks.machine import describe_machine, matrix_macs_per_second, wait_for
from benchmarks.result_tables import write_result
from benchmarks.training_macs import backbone_macs, exits_training_macs, fast_macs
from benchmarks.users import choose, data_name, load_user
from clients.exit_training import train_exits
from clients.fast_training import classify, embed, fit_classifiers
from clients.features import FeatureCache
from clients.frozen_backbone import frozen_backbone
from clients.settings import PersonalisationSettings
from data_partitions.opening import DataSettings, open_partitions
from data_partitions.samples import Partitions, UserSamples, to_float
from data_partitions.user_splits import SampleSplit, SplitSettings, split_samples
from fl_app.command_groups import takes
from fl_app.command_options import data_settings
from multi_exit.network import MultiExitNetwork
from multi_exit.storage import load_network

Population = Sequence[tuple[UserSamples, SampleSplit]]
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


@takes(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    users: Annotated[int, typer.Option(help="How many; 0 for all, those who trained the model too.")] = 0,
    cohort: Annotated[int, typer.Option(help="Users who are trained together.")] = 64,
    repeats: Annotated[int, typer.Option(help="How often the population is trained, after one cohort.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the splits and of the training.")] = 0,
) -> None:
    """Train a population's exits and measure the time."""
    network, metadata = load_network(model, SOURCES)
    network = network.freeze_backbone().to(device)
    population = load_population(data, users, seed, metadata.trained_on)
    rate = matrix_macs_per_second(device=device, side=MATRIX_SIDE[device])
    rows = []
    for schedule in schedules.SCHEDULES:
        settings = schedules.schedule_settings(schedule)
        train_population(network, population[:cohort], settings, device, cohort, seed)
        for repeat in range(repeats):
            row = train_population(network, population, settings, device, cohort, seed)
            share = row["macs"] / row["seconds"] / rate
            rows.append({"schedule": schedule, "device": device, "repeat": repeat, **row, "share": share})
    about = {
        "machine": describe_machine(device),
        "dataset": data_name(data),
        "backbone": network.spec.backbone.split(":")[-1],
        "head": network.spec.head,
        "cohort": cohort,
        "float32_rate": rate,
        "repeats": repeats,
    }
    write_result(out, "gpu", about, {"population": pd.DataFrame(rows)})


def load_population(data: DataSettings, users: int, seed: int, trained_on: Sequence[str]) -> Population:
    """Return the users' samples and splits, loaded by one process per core."""
    partitions = open_partitions(data)
    if users:
        chosen = choose(partitions, users, seed, trained_on)
    else:
        least = SplitSettings().min_samples
        sizes = zip(partitions.client_ids, partitions.counts, strict=True)
        chosen = tuple(user for user, size in sizes if size >= least)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        loaded = pool.map(functools.partial(_load, data), chosen, chunksize=16)
    as_tensor = torch.from_numpy
    everyone = [UserSamples(client_id=u, images=as_tensor(images), labels=as_tensor(y)) for u, images, y in loaded]
    return [(samples, split_samples(samples, SplitSettings(), seed)) for samples in everyone]


def train_population(
    network: MultiExitNetwork,
    population: Population,
    settings: PersonalisationSettings,
    device: str,
    cohort: int,
    seed: int,
) -> dict[str, Any]:
    """Train and test everyone.

    Returns:
        users, seconds, macs (the plan's, training only), accuracy (mean of the early exits over all test samples).
    """
    wait_for(device)
    begin, right, asked = time.perf_counter(), 0.0, 0
    for start in range(0, len(population), cohort):
        together = population[start : start + cohort]
        correct = _train_cohort(network, together, settings, device, seed)
        right += float(correct.double().mean(dim=1).sum())
        asked += len(correct)
    wait_for(device)
    seconds = time.perf_counter() - begin
    everything = tuple(range(network.num_exits))
    trained = sum(len(split.train) for _, split in population)
    macs = trained * backbone_macs(network, everything)
    if settings.schedule == schedules.FAST:
        macs += sum(fast_macs(network, everything, len(split.train)) for _, split in population)
    else:
        macs += trained * settings.epochs * exits_training_macs(network, everything)
    return {"users": len(population), "seconds": seconds, "macs": macs, "accuracy": right / asked}


def _train_cohort(
    network: MultiExitNetwork, together: Population, settings: PersonalisationSettings, device: str, seed: int
) -> Tensor:
    """Return whether each early exit answered each test sample of the cohort, [N, M]."""
    images = torch.cat([samples.images for samples, _ in together]).to(device, non_blocking=True)
    with torch.no_grad():
        maps, logits = frozen_backbone(network).features(to_float(images))
    everyone = FeatureCache(maps=tuple(maps), last_logits=logits)
    embedded = embed(network.heads, everyone) if settings.schedule == schedules.FAST else ()
    correct, start = [], 0
    for samples, split in together:
        own = slice(start, start + len(samples))
        start = own.stop
        features = FeatureCache(maps=tuple(m[own] for m in everyone.maps), last_logits=everyone.last_logits[own])
        labels = samples.labels.to(device)
        heads = copy.deepcopy(network.heads).requires_grad_(True)
        if embedded:
            rows, last = [one[own] for one in embedded], features.last_logits[split.train]
            train_rows = [one[split.train] for one in rows]
            fit_classifiers(heads, train_rows, last, labels[split.train], settings.weights)
            answers = classify(heads, [one[split.test] for one in rows]).argmax(dim=2)
        else:
            train_exits(heads, features, labels, split.train, settings, torch.Generator().manual_seed(seed))
            answers = _answers(heads, features, split.test)
        correct.append((answers == labels[split.test]).T.cpu())
    return torch.cat(correct)


@torch.no_grad()
def _answers(heads: nn.ModuleList, features: FeatureCache, test: Tensor) -> Tensor:
    return torch.stack([head(maps[test]).argmax(dim=1) for head, maps in zip(heads, features.maps, strict=True)])


def _load(data: DataSettings, user: str) -> tuple[str, Any, Any]:
    torch.set_num_threads(1)
    samples = load_user(_opened(data), user)
    return user, samples.images.numpy(), samples.labels.numpy()


@functools.lru_cache
def _opened(data: DataSettings) -> Partitions:
    return open_partitions(data)


if __name__ == "__main__":
    typer.run(main)
