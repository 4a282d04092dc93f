"""The users of a study, measured by several processes at once: one torch thread each, which suits small batches.

A user's tables are the same whichever process makes them; what there is already is not made again.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from persephonee.data_partitions.samples import Partitions, UserSamples
from persephonee.experiments.studies.models import load_global_model, personal_users
from persephonee.experiments.studies.rounds import user_tables
from persephonee.experiments.studies.studies import Study
from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.training.remaining_time import shown_work

logger = logging.getLogger("persephonee.figures")

TIME_NAME = "time.parquet"


class _UserMeasurer:
    """Measures one user after another.

    Args:
        study: what to measure, and how.
        network: the global model.
        partitions: those who can be measured.
        folder: holds a folder for each user.
    """

    def __init__(self, study: Study, network: MultiExitNetwork, partitions: Partitions, folder: Path) -> None:
        self._study, self._network, self._partitions, self._folder = study, network, partitions, folder

    def __call__(self, user: str) -> str:
        begin, folder = time.process_time(), self._folder / user
        for name, table in user_tables(self._study, self._network, load_user(self._partitions, user)).items():
            write_table(table, folder / f"{name}.parquet")
        # written last: with it a user is done
        write_time(begin, folder / TIME_NAME)
        return user


def measure_users(
    study: Study,
    network: MultiExitNetwork,
    partitions: Partitions,
    users: Sequence[str],
    folder: Path,
    *,
    model_folder: Path,
    processes: int,
) -> None:
    """Write the tables of those users who have none yet.

    Args:
        study: what to measure, and how.
        network: the global model, frozen.
        partitions: the study's users.
        users: whom to measure.
        folder: holds a folder for each user.
        model_folder: folder of the global model, which each process opens for itself.
        processes: at most this many at a time; with 1 the calling process measures.

    Raises:
        DataError: the data is broken.
    """
    missing = [user for user in users if not (folder / user / TIME_NAME).exists()]
    if not missing:
        return
    processes = min(processes, len(missing))
    done = len(users) - len(missing)
    if processes == 1:
        measurer = _UserMeasurer(study, network, partitions, folder)
        _follow(map(measurer, missing), study.title, done, len(users))
    else:
        with _processes(processes, study, model_folder, folder) as pool:
            futures = [pool.submit(_measure_in_worker, user) for user in missing]
            _follow((future.result() for future in as_completed(futures)), study.title, done, len(users))


def load_user(partitions: Partitions, user: str) -> UserSamples:
    """Return a user's samples."""
    return partitions.load_partition(partitions.client_ids.index(user))


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet, atomically."""
    write_bytes_atomically(path, table.to_parquet(index=False))


def write_time(begin: float, path: Path) -> None:
    """Write the CPU seconds of this process since `begin`."""
    write_table(pd.DataFrame({"seconds": [time.process_time() - begin]}), path)


def _follow(finished: Iterator[str], title: str, done: int, total: int) -> None:
    """Consume results as they arrive, and show how many users are left and how long they take."""
    left = total - done
    logger.info("%s: %d users to measure, of %d", title, left, total)
    with shown_work(logger, title) as told:
        for count, _ in enumerate(finished, start=1):
            told(count, left)
    logger.info("%s: all %d users measured", title, total)


@contextmanager
def _processes(count: int, study: Study, model_folder: Path, folder: Path) -> Iterator[ProcessPoolExecutor]:
    # forked, a process would inherit torch's threads in whatever state they are
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, spawn, _open_worker, (study, model_folder, folder))
    try:
        yield pool
    finally:
        # after an error the users that still wait must not delay it
        pool.shutdown(cancel_futures=True)


_worker: _UserMeasurer | None = None
"""Of this process, where it is one of several."""


def _open_worker(study: Study, model_folder: Path, folder: Path) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    network, _ = load_global_model(study, model_folder)
    _worker = _UserMeasurer(study, network, personal_users(study), folder)


def _end_with_parent() -> None:
    """End this process when the one that asked for it was killed: a pool's processes wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure_in_worker(user: str) -> str:
    if _worker is None:
        raise RuntimeError("the process was not opened")
    return _worker(user)
