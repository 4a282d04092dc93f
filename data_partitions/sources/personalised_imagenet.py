"""Personalised ImageNet: users with tastes of their own, over any labelled image set (PersEPhonEE, Sec. 4.1).

How often a user meets a class follows a Gaussian over the user's own permutation of the classes. Images are uint8
[N, 3, H, W].

    images ──► global pool                      users `g0000`, ...: equal shares of it, for the global model
           └─► personal pool ──► may train      users `u0000`, ...: drawn by popularity, without replacement
                             └─► tests only

The pools never overlap, and an image that tests one user trains and calibrates none, since it is the image that has
the part. Two users may share an image within a part.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from persephonee.data_partitions.errors import NotEnoughUsersError
from persephonee.data_partitions.samples import UserSamples, check_index
from persephonee.data_partitions.sources.image_cells import refuse_too_many, stack
from persephonee.data_partitions.sources.image_rows import Rows, decode_rows
from persephonee.data_partitions.sources.image_users import ImageUserSettings

if TYPE_CHECKING:
    # it needs pyarrow, which a pretraining on other data does without
    from persephonee.data_partitions.sources.image_sets import ImageSet

logger = logging.getLogger(__name__)

# streams of random numbers, which must not share numbers
_POOLS, _SHARES, _USER = range(3)


class PersonalisedImageNet:
    """Users of one pool of an image set; which image belongs to whom depends on the settings and the labels alone.

    Args:
        images: the labelled images.
        settings: how users are drawn.
        pool: "personal" or "global".

    Raises:
        NotEnoughUsersError: the pool has too few images for a user, or for two in the global pool.
        BrokenDataError: the first image does not decode.
    """

    name = "imagefolder"

    def __init__(self, images: "ImageSet", settings: ImageUserSettings, pool: str = "personal") -> None:
        self._images, self._settings = images, settings
        self.class_names: tuple[str, ...] | None = images.class_names
        self.num_classes = len(images.class_names)
        of_global, may_train, tests = _pools(images.labels, settings)
        if pool == "global":
            self._rows = _equal_fractions(of_global, settings)
            self._tests = [np.empty(0, dtype=np.int64)] * len(self._rows)
        else:
            drawn = [self._draw(user, may_train, tests) for user in range(settings.num_users)]
            self._rows = [np.sort(np.concatenate(parts)) for parts in drawn]
            self._tests = [test for _, test in drawn]
        self.pool = pool
        self.division = settings.division()
        """What decides which images are for the global model, besides the image set itself."""
        self.num_partitions = len(self._rows)
        self.client_ids = tuple(f"{pool[0] if pool == 'global' else 'u'}{user:04d}" for user in range(len(self._rows)))
        self.counts = tuple(map(len, self._rows))
        self.classes_seen = tuple(len(np.unique(images.labels[rows])) for rows in self._rows)
        """Each user's number of classes that are there in practice."""
        self.image_shape: tuple[int, int, int] = decode_rows(images, self._rows[0][:1], settings.image_size)[0].shape
        seen = f"{min(self.classes_seen)} to {max(self.classes_seen)}"
        logger.info("%d users of the %s pool see %s of %d classes", len(self._rows), pool, seen, self.num_classes)

    def load_partition(self, index: int) -> UserSamples:
        """Decode the images of user `client_ids[index]`; those of the personal pool have a fixed test part."""
        check_index(index, self.num_partitions)
        client_id, rows = self.client_ids[index], self._rows[index]
        refuse_too_many(len(rows), self.image_shape, client_id)
        pixels = decode_rows(self._images, rows, self._settings.image_size)
        fixed = np.isin(rows, self._tests[index]) if self.pool == "personal" else None
        return UserSamples(
            client_id=client_id,
            images=stack(pixels, self.image_shape, client_id),
            labels=self._images.labels[rows],
            fixed_test=fixed,
        )

    def _draw(self, user: int, may_train: Rows, tests: Rows) -> tuple[Rows, Rows]:
        """Return a user's rows to train and calibrate with, and those to test with."""
        generator = _generator(self._settings, _USER, user)
        shares = popularity(self.num_classes, self._settings.label_skew_width, generator)
        num_tests = max(1, round(self._settings.test_fraction * self._settings.samples_per_user))
        labels = self._images.labels
        return (
            _choose(may_train, labels, self._settings.samples_per_user - num_tests, shares, generator),
            _choose(tests, labels, num_tests, shares, generator),
        )


def popularity(num_classes: int, width: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the fraction of each class among a user's images, shape [K], sum 1: a Gaussian over a permutation."""
    place = generator.permutation(num_classes) - (num_classes - 1) / 2
    # relative to the most popular class, so that a narrow Gaussian does not vanish between two classes
    exponent = -0.5 * (place / width) ** 2
    shares = np.exp(exponent - exponent.max())
    return np.asarray(shares / shares.sum())


def _pools(labels: Rows, settings: ImageUserSettings) -> tuple[Rows, Rows, Rows]:
    """Divide the rows, class by class: for the global model, for users to train with, for users to test with."""
    generator = _generator(settings, _POOLS)
    parts: tuple[list[Rows], list[Rows], list[Rows]] = ([], [], [])
    for label in range(int(labels.max()) + 1):
        rows = generator.permutation(np.flatnonzero(labels == label))
        end_of_global = round(settings.global_fraction * len(rows))
        end_of_tests = end_of_global + round(settings.test_fraction * (len(rows) - end_of_global))
        for part, piece in zip(parts, np.split(rows, [end_of_global, end_of_tests]), strict=True):
            part.append(piece)
    of_global, tests, may_train = (np.concatenate(part) for part in parts)
    return of_global, may_train, tests


def _equal_fractions(rows: Rows, settings: ImageUserSettings) -> list[Rows]:
    count = len(rows) // settings.samples_per_user
    if count < 2:
        raise NotEnoughUsersError(
            f"--samples-per-user {settings.samples_per_user} is too many: the pool that trains the model has "
            f"{len(rows)} images, and 2 users are the least. Use --samples-per-user {len(rows) // 2} or less, or more "
            "images."
        )
    shuffled = _generator(settings, _SHARES).permutation(rows)
    return [np.sort(piece) for piece in np.array_split(shuffled, count)]


def _choose(pool: Rows, labels: Rows, count: int, shares: NDArray[np.float64], generator: np.random.Generator) -> Rows:
    """Draw `count` different rows by their class's share; what a used-up class lacks, the others give."""
    of_class = [pool[labels[pool] == label] for label in range(len(shares))]
    left = np.asarray([len(rows) for rows in of_class])
    wanted = np.zeros(len(shares), dtype=np.int64)
    while wanted.sum() < count:
        open_fractions = np.where(wanted < left, shares, 0.0)
        if not open_fractions.sum() > 0:
            raise NotEnoughUsersError(
                f"--samples-per-user {count} is too many: the classes that a user draws from have {int(wanted.sum())} "
                f"images in this pool. Use fewer, a larger --label-skew-width, or more images."
            )
        more = generator.multinomial(count - wanted.sum(), open_fractions / open_fractions.sum())
        wanted = np.minimum(wanted + more, left)
    chosen = [generator.choice(rows, number, replace=False) for rows, number in zip(of_class, wanted, strict=True)]
    return np.concatenate(chosen)


def _generator(settings: ImageUserSettings, *purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([settings.seed, *purpose]))
