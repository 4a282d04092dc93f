"""Which labels a round may use, and what stands in for the others (PersEPhonEE, Sec. 3.1.3 and 3.1.4)."""

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import LabelsRequiredError
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.settings import UNLABELLED

Labels = NDArray[np.int64]


def usable_labels(samples: UserSamples, split: SampleSplit, settings: PersonalisationSettings) -> Labels:
    """Return the labels, int64 [N], with -1 where the device may not use one.

    Raises:
        LabelsRequiredError: settings.weights.alpha is the only weight, and no training sample has a label.
    """
    labels = np.where(split.labelled, samples.labels, UNLABELLED)
    weights = settings.weights
    if weights.alpha > 0 and weights.beta == 0 and bool((labels[split.train] == UNLABELLED).all()):
        raise LabelsRequiredError(
            f"user {samples.client_id!r} has no labelled training sample, and alpha > 0 learns from labels only: "
            "give labels, or use self-distillation (beta) or self-supervision (gamma)."
        )
    return labels


def reference_classes(labels: Labels, last_logits: NDArray[np.float32]) -> Labels:
    """Return what counts as right, [n]: the label where there is one, else the last exit's answer.

    Args:
        labels: of calibration or test samples, int64 [n], -1 where there is none.
        last_logits: of the last exit on them, [n, K].
    """
    return np.where(labels == UNLABELLED, last_logits.argmax(axis=1), labels)


def labelled_fraction(labels: Labels, split: SampleSplit) -> str:
    """Return how many of the training and calibration samples have a usable label: "all", "none", or "0.25"."""
    usable = labels[np.concatenate([split.train, split.calibration])]
    fraction = float((usable != UNLABELLED).mean())
    return {0.0: "none", 1.0: "all"}.get(fraction, f"{fraction:.2f}")
