"""A whole population on one device.

    python -m persephonee.benchmarks.simulation.gpu_population --device cuda --model MODEL DATA --out DIR

Everyone's whole round (clients/personalisation/batched_personalise.py): images go up, the frozen backbone runs once
over a batch's samples, all
exits learn from the features, thresholds are calibrated, reports made. The data lies in memory before the clock starts:
the built-in writers draw their samples, which another data set would read. The fraction of the device's rate is that of
the plan's multiply-adds over what a product of two large float32 matrices reaches here.
"""

import functools
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import typer

from persephonee.benchmarks import schedules
from persephonee.benchmarks.bench_models import SOURCES
from persephonee.benchmarks.machine import describe_machine, matrix_macs_per_second, wait_for
from persephonee.benchmarks.personalisation_cost.training_macs import exits_training_macs, fast_macs
from persephonee.benchmarks.result_tables import check_place, write_result
from persephonee.benchmarks.users import choose, data_name, load_user
from persephonee.clients.personalisation.batched_personalise import BatchUser, personalise_batch
from persephonee.clients.personalisation.reports import Stage
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import data_settings
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import Partitions, UserSamples
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import ComputeSettings
from persephonee.multi_exit.storage import load_network

Population = Sequence[BatchUser]
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


@with_groups(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What computes.")] = "cpu",
    users: Annotated[int, typer.Option(help="How many; 0 for all, those who trained the model too.", min=0)] = 0,
    user_batch: Annotated[int, typer.Option(help="Users who are trained together.", min=1)] = 200,
    repeats: Annotated[int, typer.Option(help="How often the population is trained, after one batch.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Of the splits and of the training.")] = 0,
) -> None:
    """Train a population's exits and measure the time."""
    check_place(out, "gpu")
    computes_on = ComputeSettings(device=device).torch_device()
    network, metadata = load_network(model, SOURCES)
    open_fitting(data, network, metadata)
    network = network.freeze_backbone().to(computes_on)
    population = load_population(data, users, seed, metadata.trained_on)
    rate = matrix_macs_per_second(device=device, side=MATRIX_SIDE[device])
    rows = []
    for schedule in schedules.SCHEDULES:
        settings = schedules.schedule_settings(schedule)
        train_population(network, population[:user_batch], settings, user_batch, seed)
        for repeat in range(repeats):
            row = train_population(network, population, settings, user_batch, seed)
            share = row["macs"] / row["seconds"] / rate
            rows.append({"schedule": schedule, "device": device, "repeat": repeat, **row, "share": share})
    about = {
        "machine": describe_machine(device),
        "dataset": data_name(data),
        "backbone": network.spec.backbone.split(":")[-1],
        "head": network.spec.head,
        "batch": user_batch,
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
    everyone = [UserSamples(client_id=u, images=images, labels=y) for u, images, y in loaded]
    # users of like sizes waste the least padding
    everyone.sort(key=len)
    return [BatchUser(samples=s, split=split_samples(s, SplitSettings(), seed)) for s in everyone]


def train_population(
    network: MultiExitNetwork, population: Population, settings: PersonalisationSettings, user_batch: int, seed: int
) -> dict[str, Any]:
    """Run everyone's round, on the network's device.

    Returns:
        users, seconds, macs (the plan's, of features and training), accuracy (mean of the early exits afterwards, all
        test samples together).
    """
    device, early = next(network.parameters()).device.type, tuple(range(network.num_exits))
    wait_for(device)
    begin, right, asked = time.perf_counter(), 0.0, 0
    for start in range(0, len(population), user_batch):
        for done in personalise_batch(network, population[start : start + user_batch], settings, seed=seed):
            after = [exit.accuracy for exit in done.report.exits_at(Stage.AFTER) if exit.exit in early]
            right += done.report.num_test * sum(after) / len(after)
            asked += done.report.num_test
    wait_for(device)
    seconds = time.perf_counter() - begin
    trained = [len(user.split.train) for user in population]
    macs = sum(len(user.samples) for user in population) * network.costs.original_macs
    if settings.schedule == schedules.FAST:
        macs += sum(fast_macs(network, early, count) for count in trained)
    else:
        macs += sum(trained) * settings.epochs * exits_training_macs(network, early)
    return {"users": len(population), "seconds": seconds, "macs": macs, "accuracy": right / asked}


def _load(data: DataSettings, user: str) -> tuple[str, Any, Any]:
    torch.set_num_threads(1)
    samples = load_user(_opened(data), user)
    return user, samples.images, samples.labels


@functools.lru_cache
def _opened(data: DataSettings) -> Partitions:
    return open_partitions(data)


if __name__ == "__main__":
    run_program(main)
