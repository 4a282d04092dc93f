"""How the cost grows: `python -m persephonee.benchmarks.simulation.scaling --model MODEL DATA --out DIR`.

Seconds of `personalise` against the users, the samples of a user, and the exits of the network; a straight line is
fitted to each, and its largest residual tells how straight it is. The sizes of one kind are measured in turn, several
times. Networks with fewer exits keep the first ones and have random weights, which cost the same.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from persephonee.benchmarks import schedules
from persephonee.benchmarks.bench_models import SOURCES, with_exits
from persephonee.benchmarks.machine import describe_machine
from persephonee.benchmarks.result_tables import check_place, write_result
from persephonee.benchmarks.users import choose, data_name, load_user
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import counts_of, data_settings
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network

Work = Callable[[], object]


@with_groups(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    users: Annotated[str, typer.Option(help="Numbers of users, with commas.")] = "2,4,8,16",
    samples: Annotated[str, typer.Option(help="Numbers of samples of a user, with commas.")] = "50,100,200,400,800",
    repeats: Annotated[int, typer.Option(help="How often each size is measured.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="Of PyTorch.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the choice of users and of the training.")] = 0,
) -> None:
    """Measure how the seconds of personalisation grow."""
    torch.set_num_threads(threads)
    counts, sizes = sorted(counts_of("users", users)), sorted(counts_of("samples", samples))
    check_place(out, "growth")
    network, metadata = load_network(model, SOURCES)
    partitions = open_fitting(data, network, metadata)
    schedule = schedules.schedule_settings(schedules.PAPER)
    chosen = choose(partitions, max(counts), seed, metadata.trained_on)
    everyone = [load_user(partitions, user) for user in chosen]
    pool = _pool(everyone, max(sizes))
    middle = _first(pool, sizes[len(sizes) // 2])
    networks = {count: with_exits(network, count) for count in range(1, network.num_exits + 1)}
    work: Mapping[str, Mapping[int, Work]] = {
        "users": {count: _round(network, everyone[:count], schedule, seed) for count in counts},
        "samples of a user": {size: _round(network, [_first(pool, size)], schedule, seed) for size in sizes},
        "exits": {count: _round(of, [middle], schedule, seed) for count, of in networks.items()},
    }
    rows = [{"kind": kind, **row} for kind, of in work.items() for row in timed_in_turn(of, repeats)]
    about = {
        "machine": describe_machine(),
        "dataset": data_name(data),
        "backbone": network.spec.backbone.split(":")[-1],
        "head": network.spec.head,
        "repeats": repeats,
        "samples_where_exits_vary": len(middle),
    }
    write_result(out, "growth", about, {"seconds": pd.DataFrame(rows)})


def timed_in_turn(work: Mapping[int, Work], repeats: int) -> list[dict[str, Any]]:
    """Time each size `repeats` times, all sizes in turn, after the smallest has run once untimed."""
    work[min(work)]()
    rows = []
    for repeat in range(repeats):
        for size, call in work.items():
            begin = time.perf_counter()
            call()
            rows.append({"size": size, "repeat": repeat, "seconds": time.perf_counter() - begin})
    return rows


def straight_line(sizes: np.ndarray[Any, Any], seconds: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Return slope, intercept, and the largest residual over the largest value, of a least-squares line."""
    slope, intercept = np.polyfit(sizes, seconds, 1)
    residual = np.abs(seconds - (slope * sizes + intercept)).max() / np.abs(seconds).max()
    return float(slope), float(intercept), float(residual)


def _round(
    network: MultiExitNetwork, everyone: list[UserSamples], schedule: PersonalisationSettings, seed: int
) -> Work:
    def call() -> None:
        for samples in everyone:
            personalise(network, samples, split_samples(samples, SplitSettings(), seed), schedule, seed=seed)

    return call


def _pool(everyone: list[UserSamples], size: int) -> UserSamples:
    """Return one user with the samples of several, as many as asked for where there are so many."""
    images = np.concatenate([samples.images for samples in everyone])
    labels = np.concatenate([samples.labels for samples in everyone])
    while len(labels) < size:
        # no writer has 800 characters, and which they are plays no part in the cost
        images, labels = np.concatenate([images, images]), np.concatenate([labels, labels])
    return UserSamples(client_id="many", images=images[:size], labels=labels[:size])


def _first(samples: UserSamples, count: int) -> UserSamples:
    return UserSamples(client_id=samples.client_id, images=samples.images[:count], labels=samples.labels[:count])


if __name__ == "__main__":
    run_program(main)
