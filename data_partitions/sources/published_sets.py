"""The data sets that are published by writer, with their published sizes, to compare with what was opened."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_FEMNIST_WRITER = re.compile(r"f\d{4}_\d{2}")
FEMNIST_CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A data set as its publisher describes it."""

    name: str
    users: int
    samples: int

    def compare(self, counts: Sequence[int], *, is_whole: bool) -> None:
        """Say in the log whether data has the published numbers of users and samples.

        Args:
            counts: samples of each user.
            is_whole: the data claims to be the whole set, so that another number is a warning, and no part of it.
        """
        users, samples = len(counts), sum(counts)
        published = f"{self.users:,} users and {self.samples:,} samples, as {self.name} was published"
        if (users, samples) == (self.users, self.samples):
            logger.info("The data has %s", published)
        elif is_whole or users > self.users or samples > self.samples:
            logger.warning("The data has %s users and %s samples; expected %s", f"{users:,}", f"{samples:,}", published)
        else:
            logger.info("The data has %s users and %s samples, of %s", f"{users:,}", f"{samples:,}", published)


FEMNIST_OF_THE_HUB = PublishedSet(name="flwrlabs/femnist", users=3_597, samples=814_277)
"""Samples as the card of the data set states them, writers as its users count them."""

FEMNIST_OF_LEAF = PublishedSet(name="LEAF's FEMNIST", users=3_550, samples=805_263)
"""As in Table 1 of arXiv 1812.01097; LEAF's scripts leave out users and samples as their options say."""


def is_femnist(client_ids: Sequence[str], num_classes: int) -> bool:
    """Return whether several users named like `f0000_14`, who write 62 characters, are FEMNIST's writers."""
    return (
        len(client_ids) > 1 and num_classes == len(FEMNIST_CLASSES) and all(map(_FEMNIST_WRITER.fullmatch, client_ids))
    )
