"""From the name of a CNN and many users' data to a folder with the trained global model.

MODEL/network.json, MODEL/weights-*.safetensors   the model, once it is done
MODEL/checkpoint.safetensors                      while it is being trained
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.sources.personalised_imagenet import PersonalisedImageNet
from persephonee.data_partitions.user_splits import choose_users, split_users
from persephonee.multi_exit.atomic_files import check_writable, names_in, remove_leftovers
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.repository.model_card import MEASURED
from persephonee.multi_exit.storage import ModelMetadata, save_network
from persephonee.server.errors import PretrainingError
from persephonee.server.training.exit_measurement import measure_exits
from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
from persephonee.server.training.pretraining import PretrainResult, pretrain
from persephonee.server.training.pretraining_progress import PretrainProgress

CHECKPOINT_NAME = "checkpoint.safetensors"
MODEL_NAME = "network.json"


def choose_training_users(client_ids: tuple[str, ...], shares: UserFractions, seed: int) -> tuple[tuple[str, ...], ...]:
    """Return the users who train and those who validate; everyone else may personalise.

    Raises:
        PretrainingError: fewer than two users are left.
    """
    personal = shares.num_personal(len(client_ids))
    if personal > len(client_ids) - 2:
        raise PretrainingError(
            f"{personal} of {len(client_ids)} users would be kept back to personalise, and two are needed to train "
            "and to validate; keep fewer with --personal-users."
        )
    users = split_users(client_ids, seed, personal / len(client_ids)).global_ids
    if shares.max_users is not None and shares.max_users < len(users):
        users = choose_users(users, shares.max_users, seed)
    divided = split_users(users, seed, shares.validation_fraction)
    return divided.global_ids, divided.personal_ids


def is_global_pool(partitions: Partitions) -> bool:
    """Return whether nobody in the data can ever personalise, since those who can are in a pool of their own."""
    return isinstance(partitions, PersonalisedImageNet) and partitions.pool == "global"


def division_of(partitions: Partitions) -> dict[str, Any]:
    """Return what the model has to remember of a pool: which images it took, so that no user is given them later."""
    division = getattr(partitions, "division", None)
    return {"division": division} if division else {}


def check_folder(folder: Path, resume: bool = False, overwrite: bool = False) -> None:
    """Find out before anything long whether a model can be written; nothing is changed.

    Raises:
        PretrainingError: the folder holds a model, a checkpoint or something else that would be lost.
        OSError: the folder cannot be made or written.
    """
    checkpoint = folder / CHECKPOINT_NAME
    if folder.exists() and not folder.is_dir():
        raise PretrainingError(f"{folder} is a file; a model needs a folder of its own.")
    content = names_in(folder)
    is_ours = MODEL_NAME in content or CHECKPOINT_NAME in content
    if content and not is_ours:
        raise PretrainingError(f"{folder} exists and holds something other than a model; name another folder.")
    if content and not overwrite:
        if checkpoint.exists() and not resume:
            raise PretrainingError(
                f"{folder} holds an unfinished pretraining; say --resume to go on with it or --overwrite to begin anew."
            )
        if not checkpoint.exists():
            raise PretrainingError(f"{folder} holds a model already; name another folder or say --overwrite.")
    check_writable(folder)


def prepare_folder(folder: Path, network: MultiExitNetwork, resume: bool, overwrite: bool) -> Path:
    """Make room for a model, and return the path of its checkpoint.

    Raises:
        OSError: the folder cannot be made, or the disk is too full.
    """
    checkpoint = folder / CHECKPOINT_NAME
    # weights, momentum and the best weights; the checkpoint of the epoch before stays until the next one is written
    check_writable(folder, 6 * sum(tensor.nbytes for tensor in network.state_dict().values()))
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    if overwrite and not resume:
        checkpoint.unlink(missing_ok=True)
    return checkpoint


def untrained_network(settings: GlobalModelSettings, partitions: Partitions) -> MultiExitNetwork:
    """Return the network that is to be trained on this data, with published or trained weights where they are named.

    Raises:
        MultiExitError: the backbone, the exits or the weights do not fit.
    """
    channels, height, width = partitions.image_shape
    return build_network(
        settings.backbone,
        num_exits=settings.num_exits,
        num_classes=partitions.num_classes,
        in_channels=channels,
        input_size=max(height, width),
        head=settings.head,
        stem=settings.stem,
        weights=settings.weights,
        mean=settings.mean,
        std=settings.std,
        allowed=settings.sources,
        seed=settings.training.seed,
    )


def make_global_model(
    settings: GlobalModelSettings,
    partitions: Partitions,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: PretrainProgress | None = None,
    device: torch.device | None = None,
) -> tuple[MultiExitNetwork, PretrainResult]:
    """Build the network for the data, train it, and save it in `folder`.

    Args:
        settings: which network and how to train it.
        partitions: the data of all users; those who personalise later are left out.
        folder: where the model is saved; it also holds the checkpoint.
        resume: go on from the checkpoint.
        overwrite: replace the model that lies in the folder, at the very end.
        progress: told how far the training has got.
        device: where the network is trained; None takes the CPU, on which it comes back in any case.

    Raises:
        PretrainingError: the folder is taken, or the data does not fit.
        TrainingDivergedError: the loss is not finite; the checkpoint stands.
        MultiExitError: the backbone, the exits or the weights do not fit.
        DataError: the data is broken.
    """
    check_folder(folder, resume, overwrite)
    if settings.users.personal_users is None and is_global_pool(partitions):
        settings = replace(settings, users=replace(settings.users, personal_users=0))
    training = settings.training
    train_ids, validation_ids = choose_training_users(partitions.client_ids, settings.users, training.seed)
    network = untrained_network(settings, partitions)
    if network.classifier_is_new:
        # published weights of other classes: features to begin with, and a last exit that has yet to learn
        training = replace(training, mode="joint")
    checkpoint = prepare_folder(folder, network, resume, overwrite)
    network.to(device)
    result = pretrain(network, partitions, train_ids, validation_ids, training, checkpoint, resume, progress)
    measured = measure_exits(network, partitions, validation_ids)
    # training may have changed the layout too, and exporters write another graph for other strides
    network.to(memory_format=torch.contiguous_format).cpu()
    metadata = ModelMetadata(
        dataset=partitions.name,
        trained_on=tuple(sorted((*train_ids, *validation_ids))),
        class_names=partitions.class_names or (),
        history=tuple(asdict(record) for record in result.history),
        settings={**_described(settings, result, validation_ids), **division_of(partitions), MEASURED: measured},
        calibration=result.calibration,
    )
    save_network(network, folder, metadata)
    checkpoint.unlink(missing_ok=True)
    return network, result


def _described(
    settings: GlobalModelSettings, result: PretrainResult, validation_ids: tuple[str, ...]
) -> dict[str, Any]:
    # no path: a model folder is shared, and paths tell about the machine that it was made on
    return {
        **asdict(settings.training),
        **asdict(settings.users),
        "backbone_weights": settings.weights.name if settings.weights else None,
        "best_epoch": result.best_epoch,
        "num_train": result.num_train,
        "num_validation": result.num_validation,
        "validated_on": list(validation_ids),
    }
