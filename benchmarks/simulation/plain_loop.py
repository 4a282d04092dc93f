"""The simulation's work without Flower and Ray: `personalise` for one user after the other, as the ClientApp calls it.

`python -m persephonee.benchmarks.simulation.plain_loop SETTINGS SCHEDULE` runs a fraction of the users in one process;
`loop` one per core.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from persephonee.benchmarks.schedules import schedule_settings
from persephonee.benchmarks.simulation.plain_flower.task import TaskSettings, load_model, open_data, read_settings
from persephonee.benchmarks.users import ROOT, CommandFailed, environment, load_user
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.reports import Stage
from persephonee.clients.personalisation.settings import Schedule
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples


def run_fraction(path: str, schedule: Schedule) -> dict[str, float]:
    """Personalise for the settings' users and return the seconds, model and data opened before."""
    torch.set_num_threads(1)
    settings = read_settings(path)
    network, partitions = load_model(settings.model, settings.sources), open_data(path)
    rounds = schedule_settings(schedule, settings.epochs)
    right = asked = 0.0
    with tempfile.TemporaryDirectory() as stores:
        begin = time.perf_counter()
        for user in settings.users:
            samples = load_user(partitions, user)
            split = split_samples(samples, SplitSettings(), settings.seed)
            store = ExitStore(Path(stores) / user)
            report = personalise(network, samples, split, rounds, store=store, seed=settings.seed).report
            early = report.exits_at(Stage.AFTER)[:-1]
            right += report.num_test * sum(exit.accuracy for exit in early) / len(early)
            asked += report.num_test
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "right": right, "asked": asked}


def loop(settings: TaskSettings, schedule: Schedule, cores: int, folder: Path) -> dict[str, float]:
    """Run one process per core, each with every cores-th user.

    Returns:
        `seconds`, the duration of the slowest process without its start, and `accuracy`, the mean over the early exits
        and all test samples, in [0, 1].

    Raises:
        CommandFailed: a process failed.
    """
    processes = []
    for core in range(min(cores, len(settings.users))):
        path = folder / f"share-{core}.json"
        path.write_text(json.dumps(asdict(replace(settings, users=settings.users[core::cores]))))
        processes.append(_start([str(path), schedule]))
    shares = [_answer(process) for process in processes]
    asked = sum(share["asked"] for share in shares)
    return {
        "seconds": max(share["seconds"] for share in shares),
        "accuracy": sum(share["right"] for share in shares) / asked,
    }


def _start(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "persephonee.benchmarks.simulation.plain_loop", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment(1), stdout=pipe, stderr=pipe, text=True)


def _answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    printed, errors = process.communicate()
    if process.returncode:
        raise CommandFailed(
            f"persephonee.benchmarks.simulation.plain_loop ended with {process.returncode}: {errors.strip()[-2000:]}"
        )
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer


if __name__ == "__main__":
    print(json.dumps(run_fraction(sys.argv[1], cast(Schedule, sys.argv[2]))))
