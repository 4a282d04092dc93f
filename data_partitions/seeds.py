"""All randomness follows from here: a digest of (seed, client, round, purpose), in whatever form a caller draws from.

Another purpose, client or round never shifts what is drawn for this one, and a restart draws the same again.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def digest_of(seed: object, *purpose: object) -> bytes:
    """Return 32 bytes that depend on the seed and on what they are for.

    Args:
        seed: of the run or the device.
        purpose: such as the client id, the round and a word; two uses that must differ need different purposes.
    """
    return hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()


def torch_generator(seed: object, *purpose: object) -> "torch.Generator":
    """Return a PyTorch generator on the CPU for this purpose."""
    import torch

    return torch.Generator().manual_seed(int.from_bytes(digest_of(seed, *purpose)[:8], "little") >> 1)


def numpy_generator(seed: object, *purpose: object) -> np.random.Generator:
    """Return a NumPy generator for this purpose."""
    return np.random.default_rng(int.from_bytes(digest_of(seed, *purpose)[:16], "little"))


def uniform_draw(seed: object, *purpose: object) -> float:
    """Return one number in [0, 1), uniform over purposes."""
    return int.from_bytes(digest_of(seed, *purpose)[:8], "little") / 2**64
