"""What a user's images look like to the frozen network, kept between the messages and the rounds of a simulation.

Where classifiers alone learn, all that a round asks of an image is what each exit's classifier takes of it, some
kilobytes. The backbone and the heads' convolutions, which are most of such a round's work, then compute it once for a
user. It lies in the simulated client's own store, so that whichever process plays the user next finds it, and names
the model and the images that it is of: it is taken for no others.
"""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.numpy

from persephonee.clients.personalisation.features import EmbeddingCache, Features, features_of
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.multi_exit.atomic_files import make_private_folder, write_bytes_atomically
from persephonee.multi_exit.checked_json import arrays_header, checked_state
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays, classifiers_on

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network

FEATURES_NAME = "features.safetensors"
_DAMAGES = (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError)


def kept_features(
    folder: Path,
    network: "Network",
    model: str,
    samples: UserSamples,
    settings: PersonalisationSettings,
    exits: Iterable[ExitWeights],
) -> Features | None:
    """Return the features of all samples of a user; None where a round needs more than classifiers take.

    Args:
        folder: the simulated client's store, in which they are kept.
        network: frozen.
        model: its fingerprint.
        samples: of the user.
        settings: of the round.
        exits: those that the round starts from or compares with, besides the network's own.
    """
    # a budget bounds what a small device has in memory, and says itself what is kept
    if not settings.learns_classifiers_alone or settings.memory_budget:
        return None
    own = as_arrays(network.exit_state())
    if any(classifiers_on(own, one) is None for one in exits):
        return None
    key = f"{model} {samples.images.shape} {hashlib.sha256(samples.images.tobytes()).hexdigest()}"
    found = _read(folder / FEATURES_NAME, key)
    if found is None:
        found = _embedded(network, samples, own)
        # what cannot be kept is computed again
        with suppress(OSError):
            _write(folder / FEATURES_NAME, key, found)
    return found


def _embedded(network: "Network", samples: UserSamples, own: ExitWeights) -> EmbeddingCache:
    features = features_of(network, samples.images)
    if isinstance(features, EmbeddingCache):
        return features
    return EmbeddingCache(embedded=features.embed(own), last_exit_logits=features.last_exit_logits)


def _write(path: Path, key: str, features: EmbeddingCache) -> None:
    arrays = {f"exit.{exit}": np.ascontiguousarray(rows) for exit, rows in enumerate(features.embedded)}
    arrays["last"] = np.ascontiguousarray(features.last_exit_logits)
    make_private_folder(path.parent)
    write_bytes_atomically(path, safetensors.numpy.save(arrays, metadata=arrays_header(key, arrays)), private=True)


def _read(path: Path, key: str) -> EmbeddingCache | None:
    """Return the features in a file; None where there are none, or damaged ones, or those of other images or models."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata()
        arrays = safetensors.numpy.load_file(path)
        if checked_state(header, arrays) != key:
            return None
        embedded = tuple(arrays[f"exit.{exit}"] for exit in range(len(arrays) - 1))
        return EmbeddingCache(embedded=embedded, last_exit_logits=arrays["last"])
    except _DAMAGES:
        return None
