"""Images of another kind than a user's own, made of them or of others': does a policy pass on what it does not know?"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.functional import gaussian_blur

from persephonee.data_partitions.samples import Partitions, UserSamples
from persephonee.data_partitions.synthetic.synthetic_writers import SyntheticWriters

NOISE = 40
"""Standard deviation in grey values."""
BLUR_PX, BLUR_SIDE_PX = 1.5, 11
DIGITS = 10
"""The classes of the built-in writers that QMNIST has too; they come first."""
KINDS = ("inverted", "noisy", "blurred", "stranger", "other_classes")
NO_CLASS = -1
"""The label of an image of a class that the model does not know, which nobody gets right."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def unfamiliar_images(
    images: Images, labels: Labels, stranger: UserSamples, letters: Images | None
) -> Mapping[str, tuple[Images, Labels]]:
    """Return images and labels of each of `KINDS`.

    Args:
        images: of the user's test samples, uint8 [n, C, H, W].
        labels: of these, [n].
        stranger: another user, of another domain where there are several.
        letters: of classes that the model does not know; None makes images of no class of the user's own, the left half
            of one and the right half of the next.
    """
    noise = NOISE * np.random.default_rng(0).standard_normal(images.shape)
    blurred = gaussian_blur(torch.from_numpy(images), [BLUR_SIDE_PX, BLUR_SIDE_PX], [BLUR_PX, BLUR_PX]).numpy()
    if letters is None:
        middle = images.shape[3] // 2
        letters = np.concatenate([images[..., :middle], np.roll(images, 1, axis=0)[..., middle:]], axis=3)
    shown = slice(0, len(images))
    return {
        "inverted": (255 - images, labels),
        "noisy": (np.clip(images + noise, 0, 255).astype(np.uint8), labels),
        "blurred": (blurred, labels),
        "stranger": (stranger.images[shown], stranger.labels[shown]),
        "other_classes": (letters[shown], np.full(len(letters[shown]), NO_CLASS)),
    }


def stranger_to(partitions: Partitions, index: int) -> UserSamples:
    """Return another user, of another domain where the source knows domains."""
    own, count = partitions.load_partition(index), partitions.num_partitions
    for step in range(count // 2, count):
        # users are in the order of their names, in which a domain's are neighbours
        other = partitions.load_partition((index + step) % count)
        if own.domain is None or other.domain != own.domain:
            return other
    return partitions.load_partition((index + 1) % count)


def letters_for(partitions: Partitions, index: int) -> Images | None:
    """Return letters of a built-in writer for a model that knows digits alone; None for any other."""
    if partitions.num_classes != DIGITS:
        return None
    writer = SyntheticWriters().load_partition(index)
    return writer.images[writer.labels >= DIGITS]
