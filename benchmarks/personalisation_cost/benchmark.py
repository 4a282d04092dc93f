"""What it costs to personalise.

    python -m persephonee.benchmarks.personalisation_cost.benchmark --model MODEL DATA --out DIR --name NAME

Full fine-tuning, the paper's way, and ours (benchmarks/personalisation_cost/methods.py), for exit 0 alone and for all
exits: time, peak
resident memory, accuracy reached, and the time over what the plan's arithmetic would take at the speed of this
machine's matrix products. Each way runs in a process of its own, all of them in turn, `--rounds` times.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from persephonee.benchmarks.bench_models import SOURCES
from persephonee.benchmarks.machine import describe_machine
from persephonee.benchmarks.personalisation_cost.methods import WAYS
from persephonee.benchmarks.personalisation_cost.one_method import MethodSettings, to_json
from persephonee.benchmarks.result_tables import check_place, write_result
from persephonee.benchmarks.users import choose, data_name, run_command
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import data_settings
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.settings import DataSettings
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.storage import load_network

PARTLY_MEASURED = ("whole", "paper")
"""What `--steps` cuts short: ways whose time is that of equal steps."""

Row = dict[str, Any]


@with_groups(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    name: Annotated[str, typer.Option(help="Of the result.")] = "personalisation",
    users: Annotated[int, typer.Option(help="Users who personalise.", min=1)] = 3,
    rounds: Annotated[int, typer.Option(help="How often each way is measured.", min=1)] = 3,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Measure full fine-tuning and the paper's way in so many steps, and scale."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Of PyTorch; 0 for one per core.", min=0)] = 0,
    epochs: Annotated[int, typer.Option(help="Of the paper's schedule.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="Of the paper's schedule.", min=1)] = 32,
    max_train: Annotated[int | None, typer.Option(help="Train on at most so many samples.", min=2)] = None,
    max_test: Annotated[int, typer.Option(help="Test on at most so many samples.", min=1)] = 200,
    memory_budget: Annotated[
        int | None, typer.Option(help="Of our ways, in bytes beyond model and images; none by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of users and of the training.")] = 0,
) -> None:
    """Measure the ways to personalise on this machine."""
    check_place(out, name)
    network, metadata = load_network(model, SOURCES)
    partitions = open_fitting(data, network, metadata)
    machine = describe_machine()
    settings = MethodSettings(
        method="",
        only_first=False,
        model=str(model),
        sources=SOURCES,
        data=data.to_flat(),
        users=choose(partitions, users, seed, metadata.trained_on),
        threads=threads or machine["cores"],
        epochs=epochs,
        batch_size=batch_size,
        max_train=max_train,
        max_test=max_test,
        steps=None,
        seed=seed,
        memory_budget=memory_budget,
    )
    rows: list[Row] = []
    for number in range(rounds):
        for method in methods(settings, steps):
            typer.echo(f"round {number + 1} of {rounds}: {method.name}", err=True)
            rows += [{"round": number, **row} for row in _measured(method)]
    about = {
        "machine": {**machine, "threads": settings.threads},
        "backbone": network.spec.backbone.split(":")[-1],
        "head": network.spec.head,
        "input_size": network.spec.input_size,
        "dataset": data_name(data),
        "rounds": rounds,
        "epochs": epochs,
        "batch_size": batch_size,
        "steps": steps,
        "memory_budget": memory_budget,
        "model_samples": metadata.settings.get("num_train"),
        "mmac": network.costs.original_macs / 1e6,
    }
    write_result(out, name, about, {"ways": pd.DataFrame(rows)})


def methods(settings: MethodSettings, steps: int | None) -> list[MethodSettings]:
    """Return all that is measured in a round; full fine-tuning knows no exits."""
    found = []
    for method in WAYS:
        cut = steps if method in PARTLY_MEASURED else None
        for only_first in (False,) if method == "whole" else (True, False):
            found.append(replace(settings, method=method, only_first=only_first, steps=cut))
    return found


def _measured(method: MethodSettings) -> list[Row]:
    done = run_command(
        [sys.executable, "-m", "persephonee.benchmarks.personalisation_cost.one_method", to_json(method)]
    )
    rows: list[Row] = json.loads(done.splitlines()[-1])
    return rows


if __name__ == "__main__":
    run_program(main)
