"""A study's data and its global model: one that is there already, one from scratch, or exits on a trained backbone."""

import logging
from pathlib import Path

from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import Partitions
from persephonee.experiments.studies.domain_users import DomainUsers
from persephonee.experiments.studies.frozen_backbone import make_frozen_model
from persephonee.experiments.studies.studies import Study
from persephonee.fl_app.server_side.held_out_pools import calibrate_model
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata, load_network
from persephonee.server.training.global_model import MODEL_NAME, make_global_model
from persephonee.server.training.pretraining_progress import shown_progress

logger = logging.getLogger("persephonee.figures")


def global_model(study: Study, folder: Path, cache: Path) -> tuple[MultiExitNetwork, ModelMetadata]:
    """Return the study's global model, frozen; trained first where neither the study nor `folder` has it.

    Args:
        study: says how the model is made, or where it is.
        folder: where the model is, or is to be, saved.
        cache: folder for features of the global pool, which studies on one backbone share.

    Raises:
        DataError: the data is missing or broken.
        ServerError: the model cannot be trained.
        ModelFileError: the study's model is missing or damaged.
    """
    if study.model_folder is None and not (folder / MODEL_NAME).exists():
        logger.info("training the global model: %s", study.title)
        partitions = _of_domain(open_partitions(study.pool, for_pretraining=True), study.training_domain)
        if study.model.training.mode == "exits":
            make_frozen_model(
                study.model,
                partitions,
                folder,
                cache,
                tuned_classifier=study.tuned_classifier,
                weights=study.exit_loss,
            )
        else:
            with shown_progress() as progress:
                make_global_model(study.model, partitions, folder, resume=True, progress=progress)
            calibrate_model(folder, partitions, sources=study.model.sources, users=study.calibration_users)
    return load_global_model(study, folder)


def load_global_model(study: Study, folder: Path) -> tuple[MultiExitNetwork, ModelMetadata]:
    """Return the study's global model, frozen, from where the study says that it lies, else from `folder`.

    Raises:
        ModelFileError: the model is missing or damaged.
    """
    network, metadata = load_network(study.model_folder or folder, study.model.sources)
    return network.freeze_backbone(), metadata


def personal_users(study: Study) -> Partitions:
    """Return the users of whom the study chooses those who personalise."""
    return _of_domain(open_partitions(study.data), study.domain)


def _of_domain(partitions: Partitions, domain: str | None) -> Partitions:
    return partitions if domain is None else DomainUsers(partitions, domain)
