"""Who simulates the same users in `benchmarks/simulation/benchmark.py`, each timed as a command."""

import importlib.util
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from persephonee.benchmarks import schedules
from persephonee.benchmarks.simulation.plain_flower.task import TaskSettings
from persephonee.benchmarks.users import PERSEPHONEE, run_command
from persephonee.clients.personalisation.settings import Schedule

OURS, FLOWER, PFL = "persephonee simulate", "plain Flower app", "pfl-research"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One column of the comparison.

    Attributes:
        name: `OURS`, `FLOWER` or `PFL`.
        schedule: "paper" or "fast"; baselines know the paper's only.
        head: "msdnet" or "pooled".
    """

    name: str
    schedule: Schedule = schedules.PAPER
    head: str = "msdnet"


def baselines(pfl: Path | None) -> list[Baseline]:
    """Return all that this machine can run, baselines between ours; `pfl` is the folder that it was installed into."""
    known = schedules.SCHEDULES
    found = [Baseline(name=OURS, schedule=schedule) for schedule in known]
    found.insert(1, Baseline(name=FLOWER))
    if has_pfl(pfl):
        found.append(Baseline(name=PFL))
    return [*found, Baseline(name=OURS, schedule=known[-1], head="pooled")]


def has_pfl(folder: Path | None) -> bool:
    """Whether apple/pfl-research was installed into this folder, by `pip install --target`, or beside us."""
    return (folder is not None and (folder / "pfl").is_dir()) or importlib.util.find_spec("pfl") is not None


def run_baseline(
    baseline: Baseline, settings: TaskSettings, folder: Path, cores: int, pfl: Path | None = None
) -> dict[str, Any]:
    """Run a baseline over the settings' users.

    Args:
        baseline: which baseline to run.
        settings: the users and the schedule of the training.
        folder: where it writes its files; made here.
        cores: number of processes, one for each core of this machine.
        pfl: the folder that pfl-research was installed into; None where it lies beside us.

    Returns:
        seconds from start to end, mean accuracy of the early exits over all test samples, and for ours the seconds of
        the round and of the start, which Flower's and Ray's share is measured with.

    Raises:
        CommandFailed: the baseline failed.
    """
    folder.mkdir(parents=True)
    path = folder / "settings.json"
    path.write_text(json.dumps(asdict(settings)))
    common = {**asdict(baseline), "clients": len(settings.users)}
    if baseline.name == PFL:
        return {**common, **_run_pfl(path, cores, pfl)}
    return {**common, **(_run_flower(path) if baseline.name == FLOWER else _run_ours(baseline, settings, path))}


def _run_ours(baseline: Baseline, settings: TaskSettings, path: Path) -> dict[str, Any]:
    run_dir = path.parent / "run"
    command = [*PERSEPHONEE, "simulate", "--model", settings.model]
    command += ["--sources", ",".join(settings.sources), "--seed", str(settings.seed)]
    command += ["--clients", str(len(settings.users)), "--run-dir", str(run_dir), "--schedule", baseline.schedule]
    for name, value in settings.data.items():
        command += ["--set", f"{'data-seed' if name == 'seed' else name.replace('_', '-')}={value}"]
    command += ["--set", f"epochs={settings.epochs}"]
    seconds = _timed(command)
    exits = pd.read_parquet(run_dir / "exits.parquet")
    early = exits[(exits.stage == "after") & (exits.exit < exits.exit.max())]
    accuracy = float((early.accuracy * early.num_test).sum() / early.num_test.sum())
    in_round = float(pd.read_parquet(run_dir / "rounds.parquet").seconds.sum())
    answered = int((pd.read_parquet(run_dir / "clients.parquet").status == "ok").sum())
    return {"seconds": seconds, "accuracy": accuracy, "round_seconds": in_round, "clients": answered}


def _run_flower(path: Path) -> dict[str, Any]:
    result = path.parent / "result.json"
    log = path.parent / "log.txt"
    seconds = _timed(
        [sys.executable, "-m", "persephonee.benchmarks.simulation.plain_flower_run", str(path), str(result), str(log)]
    )
    return {"seconds": seconds, "accuracy": _accuracy(result)}


def _run_pfl(path: Path, cores: int, pfl: Path | None) -> dict[str, Any]:
    result = path.parent / "result.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={cores}"]
    seconds = _timed([*launch, "-m", "persephonee.benchmarks.simulation.pfl_research", str(path), str(result)], 1, pfl)
    return {"seconds": seconds, "accuracy": _accuracy(result)}


def _timed(command: list[str], threads: int | None = None, packages: Path | None = None) -> float:
    begin = time.perf_counter()
    run_command(command, threads, packages)
    return time.perf_counter() - begin


def _accuracy(result: Path) -> float:
    accuracies: list[float] = json.loads(result.read_text())["accuracies"]
    return sum(accuracies) / len(accuracies)
