"""The user's class frequencies in force: what they add to the raw logits of each exit (not in the paper).

Exit i answers softmax(z_i / T_i + b_i) when it is calibrated, and under the user's own frequencies log(w / g) comes
on top. On the raw logits z_i that is T_i log(w / g), the *shift* of exit i, which an early exit's classifier takes into
its bias. The last exit's classifier belongs to the frozen backbone, so there the shift is added to what it returns.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.prior import ClassPrior, Floats, calibrated_probabilities, estimate_class_prior
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.seeds import numpy_generator
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.exit_calibration import LEAST_GAIN, ExitCalibration
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays, classifier_names, num_exits_of
from persephonee.multi_exit.settings import UNLABELLED

if TYPE_CHECKING:
    from torch import Tensor

    from persephonee.clients.personalisation.features import Features, Network

Shifts = NDArray[np.float32]
AnyFeatures = TypeVar("AnyFeatures", bound="Features")


def no_shifts(network: "Network") -> Shifts:
    """Return the shifts of a user whose class frequencies are the global ones: zeros, shape [M+1, K]."""
    return np.zeros((network.num_exits + 1, network.num_classes), dtype=np.float32)


def class_shifts(
    network: "Network",
    features: "Features",
    labels: NDArray[np.int64],
    split: SampleSplit,
    settings: PersonalisationSettings,
    *purpose: object,
) -> Shifts:
    """Return the shift of each of the M+1 exits, float32 [M+1, K]; zeros where the samples do not show any.

    Args:
        network: with its calibration; without one nobody knows what to compare with, and all shifts are 0.
        features: of the user's N samples, with the raw logits of the last exit.
        labels: int64 [N], -1 where the device may not use the label.
        split: the training samples say what the user's frequencies are; the others choose and judge.
        settings: whether a prior is wanted.
        purpose: seed, user and round, which decide how these samples are divided into folds.
    """
    calibration = network.calibration
    if calibration is None or not settings.use_prior:
        return no_shifts(network)
    prior = class_prior(calibration, features, labels, split, *purpose)
    return np.outer(calibration.temperatures, prior.shift).astype(np.float32)


def class_prior(
    calibration: ExitCalibration,
    features: "Features",
    labels: NDArray[np.int64],
    split: SampleSplit,
    *purpose: object,
) -> ClassPrior:
    """Return the class frequencies of a user's training samples; arguments as of `class_shifts`."""
    raw = features.last_exit_logits[split.train].astype(np.float64)
    probabilities = calibrated_probabilities(raw, calibration.temperatures[-1], np.array(calibration.biases[-1]))
    frequencies = np.array(calibration.frequencies)
    generator = numpy_generator(*purpose, "class frequencies")
    given = labels[split.train]
    # the model's bound is against mistaking another hand for other classes, and labels do not
    least_gain = LEAST_GAIN if (given != UNLABELLED).all() else calibration.least_gain
    return estimate_class_prior(probabilities, frequencies, generator, given, least_gain)


def shifted(exits: "Mapping[str, Tensor] | Mapping[str, NDArray[Any]]", shifts: Shifts) -> ExitWeights:
    """Return the weights of M exits that add their rows of shifts [M or more, K] to their logits."""
    weights = as_arrays(exits)
    if not shifts[: num_exits_of(weights)].any():
        return weights
    biases = [classifier_names(weights, exit)[1] for exit in range(num_exits_of(weights))]
    return {**weights, **{bias: weights[bias] + shift for bias, shift in zip(biases, shifts, strict=False)}}


def without_shifts(logits: Shifts, shifts: Shifts) -> Shifts:
    """Return what M early exits answer without their rows of shifts [M+1, K]; logits are [M, n, K]."""
    return logits - shifts[:-1, None]


def with_last_shift(features: AnyFeatures, last_shift: Shifts | None) -> AnyFeatures:
    """Return the features with a shift [K] added to the last exit's logits; None adds nothing."""
    return features if last_shift is None else features.with_last_shift(last_shift)


def last_exit_probabilities(network: "Network", last_logits: Shifts) -> Floats:
    """Return what the last exit gives to each class, float64 [n, K], calibrated where the server has calibrated it.

    Args:
        network: the calibration stands in it.
        last_logits: of the last exit, raw or with the user's shift, shape [n, K].
    """
    logits = last_logits.astype(np.float64)
    calibration = network.calibration
    if calibration is None:
        return calibrated_probabilities(logits, 1.0, np.zeros(logits.shape[1]))
    return calibrated_probabilities(logits, calibration.temperatures[-1], np.array(calibration.biases[-1]))
