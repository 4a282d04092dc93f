"""What a user's images look like to the frozen network, kept between the rounds of a simulation.

Where classifiers alone learn, all that a round asks of an image is what each exit's classifier takes of it, some
kilobytes. The backbone and the heads' convolutions, which are most of such a round's work, then compute it once for a
user and process. It is keyed by the fingerprints of the model and of the images, so that it outlives neither, and
bounded: once it is full, nothing more is kept.
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from persephonee.clients.personalisation.features import EmbeddingCache, Features, features_of, runs_on_graphs
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays, classifier_names

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network

KEPT_BYTES = 512 * 2**20
"""Of the memory of a process that plays clients."""


class KeptFeatures:
    """Features of users by their images; of one model at a time.

    Args:
        most_bytes: how much is kept.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most, self._model, self._bytes = most_bytes, "", 0
        self._of: dict[str, EmbeddingCache] = {}

    def features(
        self,
        network: "Network",
        model: str,
        samples: UserSamples,
        settings: PersonalisationSettings,
        exits: Iterable[ExitWeights],
    ) -> Features | None:
        """Return the features of all samples of a user; None where a round needs more than classifiers take.

        Args:
            network: frozen.
            model: its fingerprint.
            samples: of the user.
            settings: of the round.
            exits: those that the round starts from or compares with, besides the network's own.
        """
        # a budget bounds what a small device has in memory, and says itself what is kept
        if not learns_classifiers_alone(settings) or settings.memory_budget:
            return None
        own = as_arrays(network.exit_state())
        if not all(differ_in_classifiers_alone(own, one) for one in exits):
            return None
        if model != self._model:
            self._model, self._bytes, self._of = model, 0, {}
        key = f"{samples.images.shape} {hashlib.sha256(samples.images.tobytes()).hexdigest()}"
        if key not in self._of:
            found = _embedded(network, samples, own)
            size = found.last_exit_logits.nbytes + sum(rows.nbytes for rows in found.embedded)
            if self._bytes + size > self._most:
                return found
            self._of[key] = found
            self._bytes += size
        return self._of[key]


def learns_classifiers_alone(settings: PersonalisationSettings) -> bool:
    """Return whether a round leaves everything but the exits' classifiers as it is."""
    return settings.schedule == "fast" or not settings.weights.is_learning


def differ_in_classifiers_alone(own: ExitWeights, other: ExitWeights) -> bool:
    """Return whether exits have the same weights up to their classifiers, which may be others."""
    if own.keys() != other.keys():
        return False
    exits = {int(name.split(".")[1]) for name in own}
    classifiers = {name for exit in exits for name in classifier_names(own, exit)}
    return all(name in classifiers or np.array_equal(own[name], other[name]) for name in own)


def _embedded(network: "Network", samples: UserSamples, own: ExitWeights) -> EmbeddingCache:
    features = features_of(network, samples.images)
    if runs_on_graphs(network) and isinstance(features, EmbeddingCache):
        return features
    return EmbeddingCache(embedded=features.embed(own), last_exit_logits=features.last_exit_logits)
