"""How fast users are simulated.

    python -m persephonee.benchmarks.simulation.benchmark --model MODEL --pooled-model MODEL DATA --out DIR

`persephonee simulate` against a plain Flower app (benchmarks/plain_flower) and apple/pfl-research's simulator
(benchmarks/simulation/pfl_research.py): same model, data, loss and epochs, one process per core, in turn, in one run.
And the same
`personalise` calls in a plain loop (benchmarks/simulation/plain_loop.py), which tells what Flower and Ray add.

A baseline's rate is what more users cost: (many - few) / (seconds of many - seconds of few). The start, which takes
equally long for any number of users, is thereby left out of all rates alike; it has a column of its own. Ours starts in
the same way for every schedule, so its few users run once, by the fast one, which can only make the others look slower.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from persephonee.benchmarks import schedules
from persephonee.benchmarks.bench_models import SOURCES
from persephonee.benchmarks.machine import describe_machine
from persephonee.benchmarks.result_tables import check_place, write_result
from persephonee.benchmarks.simulation.baselines import OURS, Baseline, baselines, has_pfl, run_baseline
from persephonee.benchmarks.simulation.plain_flower.task import TaskSettings
from persephonee.benchmarks.simulation.plain_loop import loop
from persephonee.benchmarks.users import data_name
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import data_settings
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import choose_users
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.storage import load_network

Row = dict[str, Any]


@with_groups(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    pooled_model: Annotated[Path, typer.Option(help="Folder of the same model with `pooled` exits.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    pfl: Annotated[Path | None, typer.Option(help="Folder that pfl was installed into, with --target.")] = None,
    clients: Annotated[int, typer.Option(help="Users whom ours simulates.", min=1)] = 250,
    opponents_clients: Annotated[int, typer.Option(help="Users whom the others simulate.", min=1)] = 50,
    many_clients: Annotated[int, typer.Option(help="Users of the large run, once; 0 leaves it out.", min=0)] = 2000,
    few: Annotated[int, typer.Option(help="Users of the run that measures the start.", min=1)] = 2,
    repeats: Annotated[int, typer.Option(help="How often each baseline is measured.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Of the choice of users and of the training.")] = 0,
) -> None:
    """Measure clients per second on this machine."""
    machine = describe_machine()
    check_place(out, "simulation")
    network, metadata = load_network(model, SOURCES)
    open_fitting(data, *load_network(pooled_model, SOURCES))
    partitions = open_fitting(data, network, metadata)
    available = len(set(partitions.client_ids) - set(metadata.trained_on))
    sizes = {"ours": min(clients, available), "baselines": min(opponents_clients, available), "few": few}
    sizes["many"] = min(many_clients, available)
    settings = {
        head: TaskSettings(
            model=str(folder.absolute()),
            sources=SOURCES,
            data={**data.to_flat()},
            users=(),
            seed=seed,
        )
        for head, folder in (("msdnet", model), ("pooled", pooled_model))
    }
    about = {
        "machine": {**machine, "threads": 1},
        "dataset": data_name(data),
        "repeats": repeats,
        "sizes": sizes,
        "skipped": [] if has_pfl(pfl) else ["pfl-research, which is not installed"],
    }
    rows: list[Row] = []
    # not a temporary folder of the system, where gigabytes of exits would stay if this process were killed
    scratch = out / "simulation-scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for number, (kind, repeat, baseline, count) in enumerate(_plan(sizes, repeats, pfl)):
            folder = scratch / str(number)
            users = _users(partitions, count, seed, metadata.trained_on)
            chosen = replace(settings[baseline.head], users=users)
            typer.echo(f"{kind}: {baseline.name}, {baseline.head}, {baseline.schedule}, {count} users", err=True)
            if kind == "loop":
                folder.mkdir(parents=True)
                row: Row = {**loop(chosen, baseline.schedule, machine["cores"], folder), "clients": count}
                row |= {"name": "plain loop", "schedule": baseline.schedule, "head": baseline.head}
            else:
                row = run_baseline(baseline, chosen, folder, machine["cores"], pfl)
            rows.append({"kind": kind, "repeat": repeat, **row})
            # after each, since the last one may take too long
            write_result(out, "simulation", about, {"runs": pd.DataFrame(rows)})
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _plan(sizes: dict[str, int], repeats: int, pfl: Path | None) -> Iterator[tuple[str, int, Baseline, int]]:
    """Yield what is run: its kind, the repetition, who runs, how many users."""
    everyone = baselines(pfl)
    fast = Baseline(name=OURS, schedule=schedules.FAST)
    for baseline in everyone:
        if baseline.name != OURS or baseline == fast:
            yield "few", 0, baseline, sizes["few"]
    for repeat in range(repeats):
        for baseline in everyone:
            yield "rate", repeat, baseline, sizes["ours" if baseline.name == OURS else "baselines"]
        for schedule in schedules.SCHEDULES:
            yield "loop", repeat, Baseline(name=OURS, schedule=schedule), sizes["ours"]
    if sizes["many"] > sizes["ours"]:
        yield "many", 0, fast, sizes["many"]


def _users(partitions: Partitions, count: int, seed: int, trained_on: tuple[str, ...]) -> tuple[str, ...]:
    """Return the users whom `persephonee simulate` chooses, without those who are too small to take part."""
    chosen = choose_users(partitions.client_ids, count, seed, exclude=trained_on)
    sizes = dict(zip(partitions.client_ids, partitions.counts, strict=True))
    return tuple(user for user in chosen if sizes[user] >= SplitSettings().min_samples)


if __name__ == "__main__":
    run_program(main)
