"""What a trained model's exits are worth on users whom its training never saw, for the model's card."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from persephonee.data_partitions.samples import Partitions
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.intervals import draw_users, estimate
from persephonee.server.training.exit_calibration_fit import all_logits
from persephonee.server.training.training_samples import gather_samples

BINS = 15


def measure_exits(network: MultiExitNetwork, partitions: Partitions, users: Sequence[str]) -> dict[str, Any]:
    """Return each exit's accuracy with its interval, and its calibration error over all samples; JSON values.

    The interval is over users, and over the samples of a single user.

    Args:
        network: trained and calibrated; leaves eval() mode on.
        partitions: where the users are.
        users: whom training never saw.

    Returns:
        `users`, `samples`, and for each of the M+1 exits `accuracy` (mean, low, high, in [0, 1]), `ece` of the softmax,
        and `ece_calibrated` of the probabilities that the model's calibration makes of the logits.
    """
    tables = [gather_samples(partitions, [user]) for user in users]
    logits = [all_logits(network, table) for table in tables]
    accuracies = np.stack(
        [(one.argmax(2) == table.labels).double().mean(1).numpy() for one, table in zip(logits, tables, strict=True)]
    )
    together, labels = torch.cat(logits, dim=1), torch.cat([table.labels for table in tables])
    if len(users) == 1:
        # one user has no spread: the interval is over their samples
        accuracies = (together.argmax(2) == labels).double().numpy().T
    draws = draw_users(len(accuracies))
    return {
        "users": len(users),
        "samples": len(labels),
        "exits": [
            {
                "accuracy": asdict(estimate(accuracies[:, exit], draws)),
                "ece": _error_of(together[exit], labels),
                "ece_calibrated": _error_of(_calibrated(network, exit, together[exit]), labels),
            }
            for exit in range(network.num_exits + 1)
        ],
    }


def calibration_error(confidences: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over 15 equal bins (low, high], of confidences [N] in [0, 1]."""
    bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidences - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def _calibrated(network: MultiExitNetwork, exit: int, logits: Tensor) -> Tensor:
    calibration = network.calibration
    if calibration is None:
        return logits
    return logits / calibration.temperatures[exit] + torch.tensor(calibration.biases[exit], dtype=logits.dtype)


def _error_of(logits: Tensor, labels: Tensor) -> float:
    confidences, predictions = torch.softmax(logits, dim=1).max(dim=1)
    return calibration_error(confidences.numpy(), (predictions == labels).numpy())
