"""What can be wrong with a simulation and needs no training to be found: it is said before anything long begins."""

import importlib.util
import shutil
from collections.abc import Collection
from pathlib import Path

from persephonee.clients.personalisation.feature_plan import plan_features
from persephonee.clients.personalisation.settings import parse_bytes
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.sources.personalised_imagenet import PersonalisedImageNet
from persephonee.data_partitions.user_splits import choose_users
from persephonee.fl_app.deployment.programs import program
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.multi_exit.atomic_files import check_writable
from persephonee.multi_exit.exit_weights import as_arrays, classifiers_on
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.results.run_folder import RunFolder, check_room
from persephonee.server.training.global_model import choose_training_users, untrained_network

NEEDED_LATER = ("ray", "matplotlib", "jinja2", "pyarrow")
"""Packages that a simulation imports once it runs, and once it has run."""


def check_machine(settings: AppSettings, run_dir: Path) -> None:
    """Refuse a machine that lacks a package, and folders that cannot be written.

    Raises:
        ModuleNotFoundError: of the package that is missing.
        AppError, ServerError: a program is missing, or the folder holds something else.
        OSError: a folder cannot be written.
    """
    for name in NEEDED_LATER:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    for name in ("flower-superlink", "flwr"):
        program(name)
    settings.privacy.check_accountant()
    paths = settings.paths
    if paths.resume:
        RunFolder.open(run_dir)
    else:
        check_room(run_dir, paths.overwrite)
    for folder in (run_dir, paths.client_store, paths.model_store, None if paths.model else run_dir.parent):
        if folder is not None:
            check_writable(folder)


def check_run_without_model(settings: AppSettings, run_dir: Path) -> None:
    """Refuse, before a model is pretrained, a run for which users, memory or room will be lacking once it is.

    Raises:
        AppError, DataError, MultiExitError: what is lacking.
    """
    partitions = open_partitions(settings.data, allowed=settings.sources)
    exclude: tuple[str, ...] = ()
    if not isinstance(partitions, PersonalisedImageNet):
        # the users of an image set are drawn from another pool than the model's
        pretraining = settings.pretraining
        training = choose_training_users(partitions.client_ids, pretraining.users, pretraining.training.seed)
        exclude = tuple(user for users in training for user in users)
    check_users(settings, partitions, exclude)
    check_network(settings, untrained_network(settings.pretraining, partitions), run_dir)


def check_users(settings: AppSettings, partitions: Partitions, exclude: Collection[str]) -> tuple[str, ...]:
    """Return the users who will personalise; refuse a run in which too many of them have too few samples.

    Raises:
        DataError: there are fewer users than were asked for.
        AppError: the run's quota of replies cannot be met.
    """
    rounds, least = settings.rounds, settings.split.min_samples
    users = choose_users(partitions.client_ids, rounds.clients or None, settings.seed, exclude=exclude)
    sizes = dict(zip(partitions.client_ids, partitions.counts, strict=True))
    small = [user for user in users if sizes[user] < least]
    enough = len(users) - len(small)
    if enough < max(1, rounds.min_reply_fraction * len(users)):
        raise AppError(
            f"{len(small)} of the {len(users)} users have fewer than min-samples={least} samples, and "
            f"min-reply-fraction={rounds.min_reply_fraction:g} of them have to answer: lower one of these settings, or "
            "take other data."
        )
    return users


def check_network(settings: AppSettings, network: MultiExitNetwork, run_dir: Path) -> None:
    """Refuse a memory budget that no sample fits into, and a disk that the users' exits do not fit onto.

    Raises:
        ClientSettingsError, AppError: with what the network needs.
    """
    chosen = settings.personalisation
    if chosen.memory_budget:
        plan_features(network, 1, parse_bytes(chosen.memory_budget), batch_size=chosen.batch_size, file=False)
    if not settings.paths.resume:
        _check_disk(settings.paths.client_store or run_dir / "clients", network, settings)


def _check_disk(stores: Path, network: MultiExitNetwork, settings: AppSettings) -> None:
    exits = as_arrays(network.exit_state())
    learned = classifiers_on(exits, exits) if settings.personalisation.learns_classifiers_alone else None
    size = sum(array.nbytes for array in (learned or exits).values())
    # from the second round on a store keeps the former exits beside the new ones
    needed = settings.rounds.clients * size * (1 if settings.rounds.rounds == 1 else 2)
    place = next(folder for folder in (stores, *stores.absolute().parents) if folder.exists())
    # what a run left there that this one overwrites makes room for it
    held = sum(file.stat().st_size for file in stores.rglob("*") if file.is_file())
    free = shutil.disk_usage(place).free + held
    if needed > free:
        raise AppError(
            f"the exits of {settings.rounds.clients} users take {needed / 1e9:.3g} GB in {stores}, where "
            f"{free / 1e9:.3g} GB are free: make room, name another disk with --run-dir, or ask for fewer --clients."
        )
