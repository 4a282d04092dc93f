"""A user's images that are the same, or nearly so: whoever tests on them flatters what trained on them."""

import numpy as np
from numpy.typing import NDArray

from persephonee.data_partitions.known_parts import digests
from persephonee.data_partitions.perceptual_hash import distances, fingerprints

NEAR_BITS = 2
"""Of 128: the hashes of near-duplicates differ in no more."""

NEAR_LEVELS = 4.0
"""Of 255: what the pixels of near-duplicates differ by on average at most, as after saving a JPEG again.

The hash alone also finds plain digits such as ones, which one hand writes alike.
"""

Indices = NDArray[np.int64]


def first_of_same(images: NDArray[np.uint8]) -> Indices:
    """Return for each image the index of the first that is identical to it; uint8 [N, C, H, W] gives int64 [N]."""
    _, first, place = np.unique(digests(images), return_index=True, return_inverse=True)
    return np.asarray(first[place], dtype=np.int64)


def near_duplicates(images: NDArray[np.uint8], tested: Indices, others: Indices) -> list[tuple[int, int]]:
    """Return those of the tested images that are nearly the same as another, each with the first such one.

    Args:
        images: uint8 [N, C, H, W].
        tested: indices.
        others: indices, none of them among the tested.
    """
    hashes = fingerprints(images)
    pairs = []
    for index in tested:
        alike = others[distances(hashes[index], hashes[others]) <= NEAR_BITS]
        differences = np.abs(images[alike].astype(np.float32) - images[index]).mean(axis=(1, 2, 3))
        near = alike[differences <= NEAR_LEVELS]
        if len(near):
            pairs.append((int(index), int(near[0])))
    return pairs
