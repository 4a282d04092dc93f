"""The sample store: what the device has seen, bounded in bytes and age, durable, a part of it never trained on.

A sample belongs to a part from the moment it is stored: `calibration` chooses thresholds and is never trained on. The
part follows from the image's own bytes, and near-duplicates share a part, so no training image is in the calibration
part in disguise; what has near-duplicates in both parts is not stored. Samples are ordered by a sequence number that
only grows; the wall clock may jump as it likes.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import StoreError
from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.device_state import Clock
from persephonee.clients.runtime.settings import SampleStoreSettings
from persephonee.data_partitions.perceptual_hash import WORDS, distances, fingerprint
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.settings import UNLABELLED

TRAIN, CALIBRATION = "train", "calibration"
DAY_S = 86_400.0


class SampleStore:
    """The samples of one user.

    Args:
        database: open for writing.
        settings: the bounds.
        image_shape: (C, H, W) of every image.
        clock: the wall clock.
    """

    def __init__(
        self,
        database: DeviceDatabase,
        settings: SampleStoreSettings,
        image_shape: tuple[int, int, int],
        clock: Clock,
    ) -> None:
        self.settings = settings
        self._database = database
        self._shape = image_shape
        self._clock = clock
        self._cached_at = -1
        self._seqs: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._hashes: NDArray[np.uint64] = np.empty((0, WORDS), dtype=np.uint64)

    def add(self, image: NDArray[np.uint8], key: str, label: int | None = None) -> int | None:
        """Store a sample; once this returned outside a transaction, no kill and no loss of power loses it.

        Args:
            image: uint8 [C, H, W].
            key: its own name, under which a label may arrive later; a key that is stored already is not stored again.
            label: the class, if it is known.

        Returns:
            The sequence number, or None where enough near-duplicates, or the key, are stored already, and where there
            are near-duplicates in both parts.

        Raises:
            StoreFullError: the disk is full; nothing that was stored is lost.
        """
        with self._database.transaction():
            elapsed = self._tick()
            if self._database.execute("SELECT 1 FROM samples WHERE key = ?", (key,)).fetchone():
                return None
            own = fingerprint(image)
            similar = self._similar(own)
            if len(similar) >= self.settings.max_similar:
                return None
            parts = {self._part_of(int(seq)) for seq in similar}
            if len(parts) > 1:
                # it lies between two images that are none of each other's: in either part it would betray the other
                return None
            pixels = image.tobytes()
            part = parts.pop() if parts else _draw_part(pixels, self.settings)
            row = (key, part, label, own.tobytes(), pixels, elapsed, self._clock.wall())
            inserted = self._database.execute(
                "INSERT INTO samples (key, part, label, fingerprint, image, elapsed, wall) VALUES (?,?,?,?,?,?,?)", row
            ).lastrowid
            assert inserted is not None
            self._seqs = np.append(self._seqs, inserted)
            self._hashes = np.concatenate([self._hashes, own[None]])
            self._delete_old(part, elapsed, len(pixels))
            return inserted

    def set_label(self, key: str, label: int) -> bool:
        """Give a stored sample its label, or another one; return whether the sample is still stored."""
        with self._database.transaction():
            return self._database.execute("UPDATE samples SET label = ? WHERE key = ?", (label, key)).rowcount > 0

    def count(self, part: str, after: int = 0) -> int:
        """Return how many samples of a part are stored, those after a sequence number only."""
        query = "SELECT count(*) FROM samples WHERE part = ? AND seq > ?"
        return int(self._database.execute(query, (part, after)).fetchone()[0])

    def last_seq(self) -> int:
        """Return the largest sequence number that is stored, 0 for none."""
        return int(self._database.execute("SELECT coalesce(max(seq), 0) FROM samples").fetchone()[0])

    def keys(self) -> list[str]:
        """Return the keys of all samples, the oldest first."""
        return [row[0] for row in self._database.execute("SELECT key FROM samples ORDER BY seq")]

    def load(self, client_id: str, newest: int) -> tuple[UserSamples, SampleSplit]:
        """Return the newest samples and their parts; calibration samples stand for the test part as well.

        A device has no samples to spare for a third part: what is reported of a round is measured on samples that
        chose its threshold, but never on one that trained an exit.

        Args:
            client_id: the user.
            newest: how many samples at most; each part gives its fraction.

        Returns:
            Samples, -1 for a label that is not known, and the split.
        """
        share = self.settings.calibration_fraction
        counts = {TRAIN: max(round(newest * (1 - share)), 1), CALIBRATION: max(round(newest * share), 1)}
        query = "SELECT image, label FROM samples WHERE part = ? ORDER BY seq DESC LIMIT ?"
        rows = {part: self._database.execute(query, (part, n)).fetchall()[::-1] for part, n in counts.items()}
        everything = [*rows[TRAIN], *rows[CALIBRATION]]
        pixels = np.frombuffer(b"".join(image for image, _ in everything), dtype=np.uint8).copy()
        labels = np.array([UNLABELLED if label is None else label for _, label in everything], dtype=np.int64)
        order = np.arange(len(everything))
        train, calibration = order[: len(rows[TRAIN])], order[len(rows[TRAIN]) :]
        images = pixels.reshape(-1, *self._shape)
        return (
            UserSamples(client_id=client_id, images=images, labels=labels),
            SampleSplit(train=train, calibration=calibration, test=calibration, labelled=labels != UNLABELLED),
        )

    def _tick(self) -> float:
        """Return the running time in s: forward steps of the wall clock, none longer than a third of the age limit.

        A board without a battery-backed clock starts in 1970 and jumps by decades once it has a network; a clock that
        is set back stands still here. Either way no sample goes too early and none is refused.
        """
        wall, known = self._clock.wall(), self._database.fact("clock")
        step = 0.0 if known is None else wall - known["wall"]
        limit = self.settings.max_age_days * DAY_S / 3
        elapsed = (0.0 if known is None else known["elapsed"]) + min(max(step, 0.0), limit)
        self._database.set_fact("clock", {"wall": wall, "elapsed": elapsed})
        return float(elapsed)

    def _similar(self, own: NDArray[np.uint64]) -> NDArray[np.int64]:
        if self._cached_at != self._database.rollbacks:
            rows = self._database.execute("SELECT seq, fingerprint FROM samples ORDER BY seq").fetchall()
            words = [np.frombuffer(row[1], dtype=np.uint64) for row in rows]
            self._seqs = np.array([row[0] for row in rows], dtype=np.int64)
            self._hashes = np.array(words, dtype=np.uint64).reshape(-1, WORDS)
            self._cached_at = self._database.rollbacks
        return self._seqs[distances(own, self._hashes) <= self.settings.similar_bits]

    def _part_of(self, seq: int) -> str:
        row = self._database.execute("SELECT part FROM samples WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise StoreError("the sample store changed under this process: start it again.")
        return str(row[0])

    def _delete_old(self, part: str, elapsed: float, bytes_each: int) -> None:
        """Delete what is too old in either part, and the oldest of `part` beyond its fraction of the bytes."""
        settings = self.settings
        share = settings.calibration_fraction if part == CALIBRATION else 1 - settings.calibration_fraction
        keep = max(int(settings.max_bytes * share) // bytes_each, 1)
        gone = self._database.execute(
            "DELETE FROM samples WHERE elapsed < ? OR seq IN "
            "(SELECT seq FROM samples WHERE part = ? ORDER BY seq DESC LIMIT -1 OFFSET ?) RETURNING seq",
            (elapsed - settings.max_age_days * DAY_S, part, keep),
        ).fetchall()
        if gone:
            kept = ~np.isin(self._seqs, [row[0] for row in gone])
            self._seqs, self._hashes = self._seqs[kept], self._hashes[kept]


def _draw_part(pixels: bytes, settings: SampleStoreSettings) -> str:
    """Return the part of an image: the same for the same bytes, in any order of arrival and after any restart."""
    drawn = int.from_bytes(hashlib.sha256(pixels).digest()[:8], "little") / 2**64
    return CALIBRATION if drawn < settings.calibration_fraction else TRAIN
