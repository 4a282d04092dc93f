"""The exit training of one user, by the schedule that the settings ask for (PersEPhonEE, Sec. 3.1.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError, NonFiniteLossError
from persephonee.clients.personalisation.features import EmbeddingCache, Features, Logits
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.starting_exits import StartingExits
from persephonee.clients.personalisation.training.linear_fit import solve
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.exit_weights import (
    ExitWeights,
    as_arrays,
    classifiers_of,
    exit_weights_of,
    with_classifiers,
)

if TYPE_CHECKING:
    import torch

    from persephonee.clients.personalisation.feature_cache import FeatureCache


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedExits:
    """What training leaves.

    Attributes:
        exits: weights of the M trained exits.
        start_logits: of the exits that training started from, on the calibration and then the test samples,
            shape [M, n, K].
        logits: of the trained ones, on the same samples.
    """

    exits: ExitWeights
    start_logits: Logits
    logits: Logits


def train(
    exits: StartingExits,
    features: Features,
    labels: NDArray[np.int64],
    split: SampleSplit,
    settings: PersonalisationSettings,
    make_generator: "Callable[[], torch.Generator]",
) -> TrainedExits:
    """Train a copy of the exits that the round starts from.

    Args:
        exits: what the round starts from.
        features: of the user's N samples, with the last exit's logits as it teaches.
        labels: int64 [N], -1 where the device may not use the label.
        split: says which samples train, and on which the exits are judged.
        settings: the schedule and the loss.
        make_generator: makes the generator of the order of the training samples, where the schedule has an order.

    Raises:
        NonFiniteLossError: the training diverged.
        ClientSettingsError: the paper's schedule trains whole heads, which needs PyTorch.
    """
    if not settings.weights.is_learning:
        logits = features.exit_logits(exits.start, split.judged)
        return TrainedExits(exits=exits.start, start_logits=logits, logits=logits)
    if settings.schedule == "fast":
        return _fit(exits.start, features, labels, split, settings)
    if isinstance(features, EmbeddingCache):
        raise ClientSettingsError(
            "schedule=paper trains the exits' convolutions, which a model's graphs do not: take --schedule fast, or "
            "pip install 'persephonee[train]'."
        )
    return _train_heads(exits, features, labels, split, settings, make_generator())  # type: ignore[arg-type]


def _fit(
    start: ExitWeights,
    features: Features,
    labels: NDArray[np.int64],
    split: SampleSplit,
    settings: PersonalisationSettings,
) -> TrainedExits:
    embedded, before = features.embed(start), classifiers_of(start)
    rows = [one[split.train] for one in embedded]
    if not all(np.isfinite(one).all() for one in rows):
        raise NonFiniteLossError("an exit's features are not finite: the round is refused and the previous exits stay.")
    logits = np.stack([one @ matrix.T for one, matrix in zip(rows, before, strict=True)])
    found = solve(
        np,
        np.stack([one @ one.T for one in rows]),
        logits,
        np.broadcast_to(features.last_exit_logits[split.train], logits.shape),
        np.broadcast_to(labels[split.train], logits.shape[:2]),
        settings.weights,
    )
    after = [matrix + change.T @ one for matrix, change, one in zip(before, found, rows, strict=True)]
    judged = [one[split.judged] for one in embedded]
    return TrainedExits(
        exits=with_classifiers(start, after),
        start_logits=np.stack([one @ matrix.T for one, matrix in zip(judged, before, strict=True)]),
        logits=np.stack([one @ matrix.T for one, matrix in zip(judged, after, strict=True)]),
    )


def _train_heads(
    exits: StartingExits,
    features: "FeatureCache",
    labels: NDArray[np.int64],
    split: SampleSplit,
    settings: PersonalisationSettings,
    generator: "torch.Generator",
) -> TrainedExits:
    import torch

    from persephonee.clients.personalisation.training.exit_training import train_exits

    heads = features.heads_with(exits.start).requires_grad_(True)
    train_exits(
        heads,
        features,
        torch.as_tensor(labels).to(features.last_logits.device),
        torch.as_tensor(split.train),
        settings,
        generator,
        anchor=features.heads_with(exits.anchor),
    )
    return TrainedExits(
        exits=as_arrays(exit_weights_of(heads)),
        start_logits=features.exit_logits(exits.start, split.judged),
        logits=features.exit_logits(heads, split.judged),
    )
