"""Pretraining of the global multi-exit network on the samples of many users (PersEPhonEE, Sec. 3.1.2).

An untrained backbone learns together with its exits, weighed as in Kaya et al. 2019 (arXiv 1810.07052), but each head
has the whole gradient of its own loss. A trained one stays as it is, and only the exits learn. Users whom training
never sees decide when to stop.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persephonee.data_partitions.samples import Partitions
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.errors import PretrainingError, TrainingDivergedError
from persephonee.server.training.exit_calibration_fit import fit_calibration
from persephonee.server.training.pretraining_checkpoint import EpochRecord, load_checkpoint, save_checkpoint
from persephonee.server.training.pretraining_progress import PretrainProgress
from persephonee.server.training.pretraining_settings import PretrainSettings
from persephonee.server.training.pretraining_trainer import Trainer
from persephonee.server.training.training_samples import SampleTable, gather_samples


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """How a pretraining went."""

    history: tuple[EpochRecord, ...]
    """One record per epoch."""

    best_epoch: int
    """The epoch, from 1, whose weights the network has."""

    num_train: int
    """Samples trained on."""

    num_validation: int
    """Samples of users whom training never saw."""

    calibration: ExitCalibration
    """Of all exits, on these samples."""

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Validation accuracy per exit in the best epoch, the last exit last."""
        return self.history[self.best_epoch - 1].validation_accuracy


def pretrain(
    network: MultiExitNetwork,
    partitions: Partitions,
    train_ids: Sequence[str],
    validation_ids: Sequence[str],
    settings: PretrainSettings,
    checkpoint: Path,
    resume: bool = False,
    progress: PretrainProgress | None = None,
) -> PretrainResult:
    """Train `network` in place; it ends in eval() mode with the weights of its best epoch, calibrated.

    With the same arguments, versions and number of threads the result is the same bit for bit, also when the run
    was interrupted and resumed: all randomness of an epoch follows from (settings.seed, epoch). A processor and a GPU
    round differently.

    Args:
        network: as `build_network` returned it; its device is where all is computed.
        partitions: the data.
        train_ids: natural ids of the users to learn from.
        validation_ids: other users, who decide which epoch was best.
        settings: the schedule of the training.
        checkpoint: file that is replaced after each epoch.
        resume: go on from `checkpoint`; where there is none yet, start.
        progress: told how far the training has got.

    Raises:
        PretrainingError: the data does not fit the network, or the checkpoint belongs to another run.
        TrainingDivergedError: the loss is not finite; the last checkpoint still stands.
        OSError: the checkpoint cannot be written.
    """
    progress = progress or PretrainProgress()
    check_fit(network, partitions, train_ids, validation_ids)
    if settings.mode == "exits" and network.num_exits == 0:
        raise PretrainingError("The network has no early exit to train; give it one, or train jointly.")
    train = gather_samples(partitions, train_ids, settings.max_samples, settings.seed, progress.users_loaded)
    validation = gather_samples(partitions, validation_ids)
    identity = _identity(network, train, validation, settings)
    trainer = Trainer(network, settings)
    if resume and checkpoint.exists():
        trainer.restore(load_checkpoint(checkpoint, identity))
    while not trainer.is_done:
        try:
            trainer.run_epoch(train, validation, progress)
        except TrainingDivergedError as error:
            kept = (
                f"the checkpoint of the epoch before stands in {checkpoint}" if trainer.history else "nothing is saved"
            )
            raise TrainingDivergedError(f"{error}; {kept}.") from None
        save_checkpoint(checkpoint, trainer.checkpoint(identity))
    network.load_state_dict(trainer.best)
    network.calibration = fit_calibration(network, validation)
    return PretrainResult(
        history=tuple(trainer.history),
        best_epoch=trainer.best_epoch,
        num_train=len(train),
        num_validation=len(validation),
        calibration=network.calibration,
    )


def check_fit(
    network: MultiExitNetwork, partitions: Partitions, train_ids: Sequence[str], validation_ids: Sequence[str]
) -> None:
    """Refuse data of other classes or another shape than the network's, and users on both sides.

    Raises:
        PretrainingError: they do not fit each other.
    """
    if partitions.num_classes != network.num_classes:
        raise PretrainingError(
            f"The network tells {network.num_classes} classes apart and {partitions.name} has "
            f"{partitions.num_classes}; build it for the data."
        )
    if partitions.image_shape != network.input_shape:
        raise PretrainingError(
            f"The network takes images of shape {network.input_shape} and {partitions.name} has "
            f"{partitions.image_shape}; build it for the data."
        )
    both = sorted(set(train_ids) & set(validation_ids))
    if both:
        raise PretrainingError(f"User {both[0]} would both train and validate; take disjoint users.")


def _identity(
    network: MultiExitNetwork, train: SampleTable, validation: SampleTable, settings: PretrainSettings
) -> dict[str, Any]:
    """Return what a checkpoint must share with the run that resumes from it."""
    own = {"initial network": network.fingerprint, "training data": train.digest, "validation data": validation.digest}
    return {**asdict(settings), **own}
