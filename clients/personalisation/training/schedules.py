"""The exit training of one user, by the schedule that the settings ask for (PersEPhonEE, Sec. 3.1.3)."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from persephonee.clients.personalisation.evaluation import exit_logits
from persephonee.clients.personalisation.features import FeatureCache
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.starting_exits import StartingExits
from persephonee.clients.personalisation.training.exit_training import train_exits
from persephonee.clients.personalisation.training.fast_training import classify, embed, fit_classifiers
from persephonee.data_partitions.user_splits import SampleSplit


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedExits:
    """What training leaves.

    Attributes:
        heads: M trained exit heads.
        start_logits: of the exits that training started from, on the calibration and then the test samples,
            shape [M, n, K].
        logits: of the trained ones, on the same samples.
    """

    heads: nn.ModuleList
    start_logits: Tensor
    logits: Tensor


def train(
    exits: StartingExits,
    features: FeatureCache,
    labels: Tensor,
    split: SampleSplit,
    settings: PersonalisationSettings,
    generator: torch.Generator,
) -> TrainedExits:
    """Train a copy of the exits that the round starts from.

    Args:
        exits: what the round starts from.
        features: of the user's N samples, with the last exit's logits as it teaches.
        labels: int64 [N], -1 where the device may not use the label.
        split: says which samples train, and on which the exits are judged.
        settings: the schedule and the loss.
        generator: of the order of the training samples.

    Raises:
        NonFiniteLossError: the training diverged.
    """
    heads = copy.deepcopy(exits.start).requires_grad_(True)
    labels = labels.to(features.last_logits.device)
    if not settings.weights.is_learning:
        logits = exit_logits(exits.start, features, split.judged)
        return TrainedExits(heads=heads, start_logits=logits, logits=logits)
    if settings.schedule == "fast":
        embedded = embed(exits.start, features)
        rows = [one[split.train] for one in embedded]
        fit_classifiers(heads, rows, features.last_logits[split.train], labels[split.train], settings.weights)
        judged = [one[split.judged] for one in embedded]
        return TrainedExits(heads=heads, start_logits=classify(exits.start, judged), logits=classify(heads, judged))
    train_exits(heads, features, labels, split.train, settings, generator, anchor=exits.anchor)
    return TrainedExits(
        heads=heads,
        start_logits=exit_logits(exits.start, features, split.judged),
        logits=exit_logits(heads, features, split.judged),
    )
