"""What a round knows of a user's images: one pass through the frozen part of the network (Sec. 3.1.3).

With PyTorch that is the backbone, and exits learn from its maps (`feature_cache.py`). On a model's graphs it is the
heads' convolutions too, and what is left of an exit is one linear layer on an embedding. Whatever comes after is NumPy.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.settings import PersonalisationSettings, parse_bytes
from persephonee.multi_exit.exit_weights import ExitWeights, classifiers_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import TypeIs

    from persephonee.clients.personalisation.feature_cache import FeatureCache
    from persephonee.clients.personalisation.feature_plan import FeaturePlan
    from persephonee.multi_exit.graphs.network import GraphNetwork
    from persephonee.multi_exit.network import MultiExitNetwork

    Network = MultiExitNetwork | GraphNetwork
    """Whatever a device has of the model."""

Logits = NDArray[np.float32]
Indices = NDArray[np.int64]


class Features(Protocol):
    """What a round asks of N images."""

    @property
    def last_exit_logits(self) -> Logits:
        """Logits of the last exit, [N, K]."""

    def exit_logits(self, exits: ExitWeights, samples: Indices) -> Logits:
        """Return what M exits answer on the images with indices `samples`, [M, n, K]."""

    def embed(self, exits: ExitWeights) -> tuple[Logits, ...]:
        """Return what each exit's classifier takes, with a 1 for its bias: [N, D_i + 1]."""

    def with_last_shift(self, shift: Logits) -> Self:
        """Return the same with a shift [K] added to the last exit's logits."""


@dataclass(frozen=True, eq=False)
class EmbeddingCache:
    """What a model's graphs make of N images.

    Attributes:
        embedded: what each of the M classifiers takes, with a 1 for its bias, [N, D_i + 1].
        last_exit_logits: [N, K].
    """

    embedded: tuple[Logits, ...]
    last_exit_logits: Logits

    def exit_logits(self, exits: ExitWeights, samples: Indices) -> Logits:
        """Return what M exits answer; see `Features`."""
        matrices = classifiers_of(exits)
        return np.stack([rows[samples] @ matrix.T for rows, matrix in zip(self.embedded, matrices, strict=True)])

    def embed(self, exits: ExitWeights) -> tuple[Logits, ...]:
        """Return what each exit's classifier takes, whatever its weights."""
        return self.embedded

    def with_last_shift(self, shift: Logits) -> Self:
        """Return the same with a shift added to the last exit's logits."""
        return replace(self, last_exit_logits=self.last_exit_logits + shift)


def runs_on_graphs(network: "Network") -> "TypeIs[GraphNetwork]":
    """Return whether a network is a model's graphs, which need no PyTorch."""
    return hasattr(network, "graphs")


def is_multi_exit(network: "Network | nn.Module") -> "TypeIs[Network]":
    """Return whether a network has exits; a plain CNN has none yet."""
    return hasattr(network, "backbone_fingerprint")


def backbone_fingerprint(network: "Network") -> str:
    """Return the fingerprint of a network's backbone, which is computed once where its weights stay as they are."""
    if runs_on_graphs(network):
        return network.backbone_fingerprint
    from persephonee.clients.personalisation.frozen_backbone import frozen_backbone

    return frozen_backbone(network).fingerprint


def compute_features(
    network: "MultiExitNetwork", images: "NDArray[np.uint8] | Tensor", plan: "FeaturePlan | None" = None
) -> "FeatureCache":
    """Return the features of images, uint8 [N, C, H, W], computed and kept by PyTorch on the network's device.

    The network must be frozen (`freeze_backbone`), else a later train() would make the cache stale.

    Args:
        network: its device is where the features are computed, and kept but for files.
        images: uint8, shape [N, C, H, W].
        plan: where they are kept; None keeps all in memory.

    Raises:
        OSError: a temporary file cannot be written.
    """
    from persephonee.clients.personalisation.feature_cache import fill_cache

    return fill_cache(network, images, plan)


def features_of(network: "Network", images: NDArray[np.uint8]) -> Features:
    """Return the features of images, uint8 [N, C, H, W], by whatever the network runs on.

    Args:
        network: frozen.
        images: uint8, shape [N, C, H, W].

    Raises:
        ModelFileError: a graph is missing or refused.
    """
    if not runs_on_graphs(network):
        return compute_features(network, images)
    found = network.embed(images)
    ones = np.ones((len(images), 1), dtype=np.float32)
    embedded = tuple(np.concatenate([rows, ones], axis=1) for rows in found.exits)
    return EmbeddingCache(embedded=embedded, last_exit_logits=found.last_logits)


def features_within_budget(
    network: "Network", images: NDArray[np.uint8], settings: PersonalisationSettings
) -> Features:
    """Return the features of images, kept where the settings' memory budget has room for them.

    Raises:
        ClientSettingsError: the budget is below what an image takes.
        OSError: a temporary file cannot be written.
        ModelFileError: a graph is missing or refused.
    """
    # embeddings are small, and stages run on as few images at a time as fit into some megabytes
    if not settings.memory_budget or runs_on_graphs(network):
        return features_of(network, images)
    from persephonee.clients.personalisation.feature_plan import plan_features

    budget = parse_bytes(settings.memory_budget)
    plan = plan_features(network, len(images), budget, batch_size=settings.batch_size, half=settings.half_features)
    return compute_features(network, images, plan)
