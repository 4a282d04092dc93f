"""Which part each of a user's images has had, so that no later round is tested on what trained an earlier one.

Another seed, other sizes or one more sample divide a user anew, while the exits go on from what they learned before.
An image is known by 61 bits of a digest of its pixels, with its parts in the three bits below: 8 bytes an image.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

TRAIN, CALIBRATION, TEST = 1, 2, 4
"""One bit each; of several parts that an image has had, the lowest one tells."""

MOST_REMEMBERED = 65_536
"""A device meets new images for years: 512 KiB of them are remembered, the oldest are forgotten."""

_PARTS = np.uint64(7)

Digests = NDArray[np.uint64]
Parts = NDArray[np.uint8]
Indices = NDArray[np.int64]


def _no_entries() -> Digests:
    return np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownParts:
    """What an exit store remembers of the samples of earlier rounds."""

    entries: Digests = field(default_factory=_no_entries)
    """Digest and parts of each image, uint64, the oldest first; no digest twice."""

    def __len__(self) -> int:
        return len(self.entries)

    def keep(self, images: NDArray[np.uint8], drawn: Parts) -> Parts:
        """Return the parts of N samples: known images keep theirs, new ones get what was drawn.

        A draw that agrees with all that is known is taken as it is: the same round again is the same bits. An older
        version drew copies of one image into several parts; the lowest of them tells.

        Args:
            images: uint8 [N, C, H, W].
            drawn: one of TRAIN, CALIBRATION and TEST for each sample, uint8 [N].
        """
        if not len(self):
            return drawn
        had = self._of(digests(images))
        known = had > 0
        if bool((had == drawn)[known].all()):
            return drawn
        lowest = np.select([had & part > 0 for part in (TRAIN, CALIBRATION)], [TRAIN, CALIBRATION], TEST)
        return np.where(known, lowest, drawn).astype(np.uint8)

    def after(self, images: NDArray[np.uint8], train: Indices, calibration: Indices, test: Indices) -> "KnownParts":
        """Return what is known after a round in which these samples, by their indices, had these parts."""
        parts = np.zeros(len(images), dtype=np.uint8)
        for part, indices in ((TRAIN, train), (CALIBRATION, calibration), (TEST, test)):
            parts[indices] |= part
        found, place = np.unique(digests(images), return_inverse=True)
        had = self._of(found)
        np.bitwise_or.at(had, place, parts)
        older = self.entries[~np.isin(self.entries & ~_PARTS, found)]
        room = max(MOST_REMEMBERED - len(found), 0)
        return KnownParts(entries=np.concatenate([older[len(older) - min(room, len(older)) :], found | had]))

    def to_text(self) -> str:
        """Return the entries as base64."""
        return base64.b64encode(self.entries.astype("<u8").tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what `to_text` wrote.

        Raises:
            ValueError: it is no base64, or cut off.
        """
        return cls(entries=np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8").astype(np.uint64))

    def _of(self, digests: Digests) -> Parts:
        """Return the parts of each digest, uint8, 0 where it is not known."""
        found = np.zeros(len(digests), dtype=np.uint8)
        if len(self):
            entries = np.sort(self.entries)
            place = np.minimum(np.searchsorted(entries, digests), len(entries) - 1)
            is_known = entries[place] & ~_PARTS == digests
            found[is_known] = (entries[place] & _PARTS)[is_known]
        return found


def digests(images: NDArray[np.uint8]) -> Digests:
    """Return 61 bits of a digest of each image, above three that are 0; uint64 [N] of uint8 [N, C, H, W]."""
    rows = (image.tobytes() for image in images)
    whole = [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little") for row in rows]
    return np.asarray(whole, dtype=np.uint64) & ~_PARTS
