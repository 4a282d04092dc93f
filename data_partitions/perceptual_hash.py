"""A cheap perceptual hash that finds near-duplicates: signs of the differences between the cells of an 8x8 grid.

A difference hash (Krawetz 2013) along both axes, 128 bits. A difference must exceed a dead band to count: on white
paper the sign of nothing is noise. Grey noise of 4 levels moves a median of 1 bit of a handwritten character and 5 at
most; the nearest other character by the same hand is 6 to 12 bits away in the median.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

GRID = 8
DEAD_BAND = 2.0
"""Grey levels out of 255."""

WORDS = 2 * GRID * GRID // 64
"""A fingerprint is this many 64-bit words."""

Fingerprint = NDArray[np.uint64]


def fingerprint(image: Tensor) -> Fingerprint:
    """Return the hash of an image, uint8 [C, H, W], as uint64 words, shape [WORDS]."""
    own: Fingerprint = fingerprints(image[None])[0]
    return own


def fingerprints(images: Tensor) -> NDArray[np.uint64]:
    """Return the hashes of images, uint8 [N, C, H, W], shape [N, WORDS]."""
    grey = images.float().mean(dim=1, keepdim=True)
    across = functional.interpolate(grey, (GRID, GRID + 1), mode="area")[:, 0]
    down = functional.interpolate(grey, (GRID + 1, GRID), mode="area")[:, 0]
    bits = [(across.diff(dim=2) > DEAD_BAND).flatten(1), (down.diff(dim=1) > DEAD_BAND).flatten(1)]
    return np.packbits(torch.cat(bits, dim=1).numpy(), axis=1).view(np.uint64)


def distances(one: Fingerprint, others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the Hamming distances, in bits, between a hash [WORDS] and others [N, WORDS], shape [N]."""
    bits: NDArray[np.int64] = np.bitwise_count(others ^ one).sum(axis=1, dtype=np.int64)
    return bits
