"""Which images look like the user's own: any other takes the last exit, however sure an early one is.

This is not in the paper. Early exits are sure of what they have never seen: of inverted, blurred or noisy images hardly
one would reach the last exit by its confidence. What gives these away is the image itself. Three numbers describe one,
its mean, its standard deviation and how much neighbouring pixels differ, and the user's own images say which values are
usual. NumPy alone; the numbers are part of the policy, so they work in every engine, and stay where the policy stays.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError

if TYPE_CHECKING:
    from persephonee.clients.personalisation.settings import PersonalisationSettings
    from persephonee.data_partitions.samples import UserSamples
    from persephonee.data_partitions.user_splits import SampleSplit

FEWEST_IMAGES = 20
"""From fewer nobody can tell what is usual, and none of the check is made."""
FOLDS = 5
BATCH = 64
DIAGONAL = 0.1
"""How much of the covariance counts without its correlations, which few images show badly."""
LEAST_DEVIATION = 1 / 255
"""One grey value: less is no difference between images."""
STATISTICS = 3

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FamiliarImages:
    """What the statistics of the user's own images are like.

    Attributes:
        centre: their means, as `image_statistics` orders them.
        whitening: 3 rows of 3; (statistics - centre) times it has the unit covariance on the user's images.
        bound: the largest distance from the centre of an image that is familiar, at least 0.

    Raises:
        ClientSettingsError: a number is missing or not finite.
    """

    centre: tuple[float, ...]
    whitening: tuple[tuple[float, ...], ...]
    bound: float

    def __post_init__(self) -> None:
        rows = (self.centre, *self.whitening)
        numbers = (self.bound, *(number for row in rows for number in row))
        fits = len(self.whitening) == STATISTICS and all(len(row) == STATISTICS for row in rows)
        if not fits or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers) or self.bound < 0:
            raise ClientSettingsError(
                f"the policy's statistics of familiar images are not {STATISTICS} numbers and {STATISTICS} rows of "
                "them: run a round again."
            )

    @classmethod
    def of(cls, statistics: Floats, unfamiliar_fraction: float) -> Self:
        """Return what is familiar, so that about this fraction of the user's own images is not.

        Args:
            statistics: of n images, [n, 3].
            unfamiliar_fraction: in (0, 1).
        """
        folds = np.arange(len(statistics)) % FOLDS
        # each image is judged by the others, since the images from which a covariance comes lie nearer to it
        away = np.empty(len(statistics))
        for fold in range(FOLDS):
            away[folds == fold] = _distances(statistics[folds == fold], *_fit(statistics[folds != fold]))
        centre, whitening = _fit(statistics)
        return cls(
            centre=tuple(centre.tolist()),
            whitening=tuple(tuple(row) for row in whitening.tolist()),
            bound=float(np.quantile(away, 1 - unfamiliar_fraction, method="higher")),
        )

    def unfamiliar(self, images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether each image is unlike the user's own, [B]; images as `image_statistics` takes them."""
        return self.unfamiliar_statistics(image_statistics(images))

    def unfamiliar_statistics(self, statistics: Floats) -> NDArray[np.bool_]:
        """Return the same of images whose statistics, [B, 3], are known."""
        away = _distances(statistics, np.array(self.centre), np.array(self.whitening))
        found: NDArray[np.bool_] = away > self.bound
        return found

    def to_json(self) -> dict[str, Any]:
        """Return what a policy keeps of it."""
        return {**asdict(self), "whitening": [list(row) for row in self.whitening], "centre": list(self.centre)}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Return what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it holds something else.
        """
        rows = tuple(tuple(row) for row in values["whitening"])
        return cls(centre=tuple(values["centre"]), whitening=rows, bound=values["bound"])


def image_statistics(images: NDArray[np.uint8] | NDArray[np.float32]) -> Floats:
    """Return of each image its mean, its standard deviation, and the root mean square difference of neighbours, [B, 3].

    Args:
        images: [B, C, H, W]; uint8 from 0 to 255, or floating point from 0 to 1.
    """
    found = np.empty((len(images), STATISTICS))
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH].astype(np.float32, copy=False)
        if images.dtype == np.uint8:
            batch = batch / np.float32(255)
        flat = batch.reshape(len(batch), -1)
        squares = sum(_mean_square(np.diff(batch, axis=axis)) for axis in (2, 3))
        found[first : first + BATCH] = np.stack([flat.mean(axis=1), flat.std(axis=1), np.sqrt(squares)], axis=1)
    return found


def familiar_images(
    samples: "UserSamples", split: "SampleSplit", settings: "PersonalisationSettings"
) -> FamiliarImages | None:
    """Return what is familiar to this user by the samples that train and calibrate.

    None where the settings want no check: the paper's rule has none.
    """
    own = np.concatenate([split.train, split.calibration])
    if settings.rule == "paper" or settings.unfamiliar_fraction == 0 or len(own) < FEWEST_IMAGES:
        return None
    return FamiliarImages.of(image_statistics(samples.images[own]), settings.unfamiliar_fraction)


def _mean_square(differences: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = differences.reshape(len(differences), -1)
    # an image of one row has no neighbours below
    count = max(flat.shape[1], 1)
    sums: NDArray[np.float32] = np.einsum("bn,bn->b", flat, flat)
    return sums / np.float32(count)


def _fit(statistics: Floats) -> tuple[Floats, Floats]:
    covariance = np.cov(statistics.T)
    mixed = (1 - DIAGONAL) * covariance + DIAGONAL * np.diag(np.diag(covariance)) + LEAST_DEVIATION**2 * np.eye(3)
    return statistics.mean(axis=0), np.linalg.inv(np.linalg.cholesky(mixed)).T


def _distances(statistics: Floats, centre: Floats, whitening: Floats) -> Floats:
    away: Floats = np.linalg.norm((statistics - centre) @ whitening, axis=1)
    return away
