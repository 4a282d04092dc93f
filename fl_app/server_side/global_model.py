"""The global model that a run personalises."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from persephonee.data_partitions.opening import open_partitions
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.multi_exit.exit_weights import ExitWeights
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata, save_network
from persephonee.server.training.global_model import MODEL_NAME, make_global_model
from persephonee.server.training.pretraining_progress import PretrainProgress

log = logging.getLogger("persephonee.server")


def obtain_model(settings: AppSettings, folder: Path, progress: PretrainProgress | None = None) -> Path:
    """Return the folder of the global model, and pretrain it there if none was named and none is there yet.

    Args:
        settings: which network and data.
        folder: `settings.model_folder(...)`.
        progress: told how far a pretraining is.

    Raises:
        ServerError: the pretraining does not fit the data, or diverged.
        MultiExitError: the backbone, the exits or the weights do not fit.
        DataError: the data is missing or broken.
    """
    if settings.paths.model is not None:
        return folder
    with _alone(folder):
        return _found_or_pretrained(settings, folder, progress)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one run at a time make the model that several runs of the same settings share; the others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Another run is pretraining %s: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _found_or_pretrained(settings: AppSettings, folder: Path, progress: PretrainProgress | None) -> Path:
    if (folder / MODEL_NAME).exists():
        log.info("No model was named: taking the one that the same settings pretrained earlier, %s", folder)
        return folder
    from persephonee.fl_app.server_side.held_out_pools import calibrate_model, check_held_out_users

    log.info("No model was named: pretraining one in %s", folder)
    partitions = open_partitions(settings.data, for_pretraining=True, allowed=settings.sources)
    device = settings.compute.torch_device()
    check_held_out_users(settings.pretraining, partitions)
    make_global_model(settings.pretraining, partitions, folder, resume=True, progress=progress, device=device)
    if count := settings.pretraining.users.calibration_users:
        from persephonee.server.training.remaining_time import RemainingTime

        log.info("Measuring what policies lose on up to %d users who trained nothing", count)
        estimate = RemainingTime()
        calibrate_model(
            folder,
            partitions,
            sources=settings.sources,
            users=count,
            seed=settings.seed,
            told=lambda done, of: estimate.log_sometimes(log, done, of),
            device=device,
        )
    return folder


def save_merged_model(
    network: MultiExitNetwork, metadata: ModelMetadata, exits: ExitWeights, contributors: Sequence[str], run: Path
) -> Path:
    """Save the model with merged exits as `model/` of a run folder, and return the folder.

    Whoever contributed counts among the users that the model was trained on, so that no later run takes one of them
    for a new user.
    """
    before = network.exit_state()
    network.load_exit_state(exits)
    trained_on = tuple(sorted({*metadata.trained_on, *contributors}))
    save_network(network, run / "model", replace(metadata, trained_on=trained_on))
    network.load_exit_state(before)
    return run / "model"
