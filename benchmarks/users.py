"""Which users a benchmark takes, and how it runs a command beside itself."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from persephonee.data_partitions.samples import Partitions, UserSamples
from persephonee.data_partitions.settings import DataSettings, Flat, SplitSettings
from persephonee.data_partitions.user_splits import choose_users
from persephonee.fl_app.errors import AppError

ROOT = Path(__file__).resolve().parent.parent
PERSEPHONEE = (sys.executable, "-c", "from persephonee.commands.application import main; main()")
"""The command line, installed or not."""


class CommandFailed(AppError):
    """A command ended with another status than 0; the text holds the end of what it printed."""


def choose(partitions: Partitions, count: int, seed: int, trained_on: Sequence[str]) -> tuple[str, ...]:
    """Return users whom the global model does not know and who are large enough."""
    sizes = zip(partitions.client_ids, partitions.counts, strict=True)
    small = [user for user, size in sizes if size < SplitSettings().min_samples]
    return choose_users(partitions.client_ids, count, seed, exclude=(*trained_on, *small))


def load_user(partitions: Partitions, user: str) -> UserSamples:
    """Return the samples of a user."""
    return partitions.load_partition(partitions.client_ids.index(user))


def data_name(data: DataSettings) -> str:
    """Return what the page calls the data: its folder's name, not where that lies."""
    path = data.data_path
    return data.dataset if path is None else path.parent.name if path.suffix else path.name


def data_options(data: Flat) -> list[str]:
    """Return a flat `DataSettings` as options of `persephonee` and of the benchmarks."""
    words = []
    for name, value in data.items():
        words += [f"--{'data-seed' if name == 'seed' else name.replace('_', '-')}", str(value)]
    return words


def run_command(command: Sequence[str], threads: int | None = None, packages: Path | None = None) -> str:
    """Run a command from the repository's root and return what it printed.

    Args:
        command: the program and its arguments.
        threads: OMP_NUM_THREADS of the command; None leaves it to the command.
        packages: a folder of packages that the command finds before others.

    Raises:
        CommandFailed: its exit status is not 0.
    """
    variables = environment(threads, packages)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command[:3])} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def environment(threads: int | None = None, packages: Path | None = None) -> dict[str, str]:
    """Return the environment of a command that finds our packages, and those in a folder before others."""
    own = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    given = filter(None, [own.get("PYTHONPATH")])
    own["PYTHONPATH"] = os.pathsep.join([*([str(packages)] if packages else []), str(ROOT), *given])
    if threads is not None:
        own["OMP_NUM_THREADS"] = str(threads)
    return own
