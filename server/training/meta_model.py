"""From a trained global model to one whose exits are meta-learned on the same users: another model folder."""

from dataclasses import asdict, replace
from pathlib import Path

from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.user_splits import choose_users
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.repository.model_card import MEASURED
from persephonee.multi_exit.settings import DEFAULT_SOURCES
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from persephonee.server.errors import PretrainingError
from persephonee.server.training.exit_calibration_fit import fit_calibration
from persephonee.server.training.exit_measurement import measure_exits
from persephonee.server.training.global_model import check_folder, prepare_folder
from persephonee.server.training.meta_learning import MetaResult, meta_learn
from persephonee.server.training.meta_settings import MetaSettings
from persephonee.server.training.meta_users import MetaUsers
from persephonee.server.training.pretraining import check_fit
from persephonee.server.training.pretraining_progress import PretrainProgress
from persephonee.server.training.training_samples import gather_samples


def make_meta_learned_model(
    model: Path,
    settings: MetaSettings,
    partitions: Partitions,
    folder: Path,
    *,
    max_users: int | None = None,
    sources: tuple[str, ...] = DEFAULT_SOURCES,
    overwrite: bool = False,
    progress: PretrainProgress | None = None,
) -> tuple[MultiExitNetwork, MetaResult]:
    """Meta-learn the exits of the model in `model`, and save the result in `folder`; the backbone stays the same bits.

    Whoever trained the model trains its exits here, and whoever validated it validates: users whom the model has not
    seen stay held out.

    Args:
        model: folder of a global model that was trained on users of `partitions`.
        settings: the method and its schedule.
        partitions: the data of all users.
        folder: where the new model is saved.
        max_users: learn from at most this many of the training users; None takes all.
        sources: where backbones may come from.
        overwrite: replace the model that lies in the folder, at the very end.
        progress: told how far the training has got.

    Raises:
        PretrainingError: the folder is taken, or the model's users are not in the data.
        TrainingDivergedError: the loss is not finite; nothing is saved.
        MultiExitError: `model` is no model, or does not fit.
        DataError: the data is broken.
    """
    if folder.resolve() == model.resolve():
        raise PretrainingError(f"{folder} is the model to start from; name another folder for the new one.")
    check_folder(folder, overwrite=overwrite)
    network, metadata = load_network(model, sources)
    train_ids, validation_ids = _users(metadata, partitions, model)
    check_fit(network, partitions, train_ids, validation_ids)
    checkpoint = prepare_folder(folder, network, resume=False, overwrite=overwrite)
    users = MetaUsers(network, partitions, settings)
    if max_users is not None and max_users < len(train_ids):
        train_ids = choose_users(train_ids, max_users, settings.seed)
    result = meta_learn(network, users, train_ids, validation_ids, settings, progress)
    # the calibration and the risk curves that came with the model are those of the exits before
    network.calibration = fit_calibration(network, gather_samples(partitions, validation_ids))
    measured = measure_exits(network, partitions, validation_ids)
    metadata = replace(
        metadata,
        calibration=network.calibration,
        risk_pools={},
        settings={**metadata.settings, MEASURED: measured},
    )
    save_network(network, folder, _described(metadata, settings, result))
    checkpoint.unlink(missing_ok=True)
    return network, result


def _users(metadata: ModelMetadata, partitions: Partitions, model: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return those who trained the model and those who validated it."""
    validation_ids = tuple(metadata.settings.get("validated_on", ()))
    others = {*validation_ids, *metadata.settings.get("calibrated_on", ())}
    train_ids = tuple(user for user in metadata.trained_on if user not in others)
    unknown = sorted(set(metadata.trained_on) - set(partitions.client_ids))
    if unknown or not train_ids or not validation_ids:
        what = f"was trained on {unknown[0]}, who is not in {partitions.name}" if unknown else "does not name its users"
        raise PretrainingError(f"The model in {model} {what}; give the data and a model that was pretrained on it.")
    return train_ids, validation_ids


def _described(metadata: ModelMetadata, settings: MetaSettings, result: MetaResult) -> ModelMetadata:
    """Return what is known of the new model: its own history, and beside the settings of the pretraining ours."""
    own = {**asdict(settings), "best_epoch": result.best_epoch, "users": result.num_train}
    return replace(
        metadata,
        history=tuple(asdict(record) for record in result.history),
        settings={**metadata.settings, "meta_learning": own},
    )
