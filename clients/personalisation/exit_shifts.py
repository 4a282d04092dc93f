"""The user's class frequencies in force: what they add to the raw logits of each exit (not in the paper).

Exit i answers softmax(z_i / T_i + b_i) when it is calibrated, and under the user's own frequencies log(w / g) comes
on top. On the raw logits z_i that is T_i log(w / g), the *shift* of exit i, which an early exit's classifier takes into
its bias. The last exit's classifier belongs to the frozen backbone, so there the shift is added to what it returns.
"""

import copy
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from persephonee.clients.personalisation.features import FeatureCache
from persephonee.clients.personalisation.prior import Floats, calibrated_probabilities, estimate_class_prior
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.seeds import numpy_generator
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.network import MultiExitNetwork


class _Classifying(Protocol):
    """A head, as multi_exit/heads.py has them."""

    classifier: nn.Linear


def no_shifts(network: MultiExitNetwork) -> Tensor:
    """Return the shifts of a user whose class frequencies are the global ones: zeros, shape [M+1, K]."""
    return torch.zeros(network.num_exits + 1, network.num_classes)


def class_shifts(
    network: MultiExitNetwork,
    features: FeatureCache,
    labels: Tensor,
    split: SampleSplit,
    settings: PersonalisationSettings,
    *purpose: object,
) -> Tensor:
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
    raw = features.last_logits[split.train].double().cpu().numpy()
    probabilities = calibrated_probabilities(raw, calibration.temperatures[-1], np.array(calibration.biases[-1]))
    frequencies = np.array(calibration.frequencies)
    generator = numpy_generator(*purpose, "class frequencies")
    prior = estimate_class_prior(probabilities, frequencies, generator, labels[split.train].cpu().numpy())
    return torch.from_numpy(np.outer(calibration.temperatures, prior.shift)).float()


def shifted(heads: nn.ModuleList, shifts: Tensor) -> nn.ModuleList:
    """Return copies of M heads that add their rows of shifts [M or more, K] to their logits; the same without any."""
    if not shifts[: len(heads)].any():
        return heads
    heads = copy.deepcopy(heads)
    with torch.no_grad():
        for head, shift in zip(heads, shifts, strict=False):
            bias = cast(_Classifying, head).classifier.bias
            bias.add_(shift.to(bias.device))
    return heads


def without_shifts(logits: Tensor, shifts: Tensor) -> Tensor:
    """Return what M early exits answer without their rows of shifts [M+1, K]; logits are [M, n, K]."""
    return logits - shifts[:-1, None].to(logits.device)


def with_last_shift(features: FeatureCache, last_shift: Tensor | None) -> FeatureCache:
    """Return the features with a shift [K] added to the last exit's logits; None adds nothing."""
    if last_shift is None:
        return features
    return replace(features, last_logits=features.last_logits + last_shift.to(features.last_logits.device))


def last_exit_probabilities(network: MultiExitNetwork, last_logits: Tensor) -> Floats:
    """Return what the last exit gives to each class, float64 [n, K], calibrated where the server has calibrated it.

    Args:
        network: the calibration stands in it.
        last_logits: of the last exit, raw or with the user's shift, shape [n, K].
    """
    logits = last_logits.double().cpu().numpy()
    calibration = network.calibration
    if calibration is None:
        return calibrated_probabilities(logits, 1.0, np.zeros(logits.shape[1]))
    return calibrated_probabilities(logits, calibration.temperatures[-1], np.array(calibration.biases[-1]))
