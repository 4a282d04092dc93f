"""How users are drawn from a labelled image set; `personalised_imagenet.py` draws them."""

from dataclasses import dataclass

from persephonee.data_partitions.errors import DataSettingsError


@dataclass(frozen=True, kw_only=True)
class ImageUserSettings:
    """How users are drawn from an image set.

    Raises:
        DataSettingsError: a setting is out of its range.
    """

    num_users: int = 250
    """Users of the personal pool, >= 1; a user is the same however many there are."""

    samples_per_user: int = 600
    """Images of each user, >= 4; a quarter of them tests."""

    label_skew_width: float = 10.0
    """Standard deviation of the popularity, in classes, > 0; about four times as many are seen in practice."""

    image_size: int | None = None
    """Side in px to which images are scaled and cropped, 8 to 4096; None leaves them as they are, all of one size."""

    global_fraction: float = 0.5
    """Fraction of each class that is for the global model, in (0, 1)."""

    test_fraction: float = 0.25
    """Fraction of a user's images that tests, and of each class's personal images that may, in (0, 1)."""

    seed: int = 0
    """Another seed gives other pools and other users; >= 0."""

    def __post_init__(self) -> None:
        self._require("num_users", self.num_users >= 1, "1 or more")
        self._require("samples_per_user", self.samples_per_user >= 4, "4 or more")
        self._require(
            "label_skew_width", 0 < self.label_skew_width < float("inf"), "a finite number of classes above 0"
        )
        self._require("image_size", self.image_size is None or 8 <= self.image_size <= 4096, "8 to 4096 px")
        self._require("global_fraction", 0 < self.global_fraction < 1, "a number in (0, 1)")
        self._require("test_fraction", 0 < self.test_fraction < 1, "a number in (0, 1)")
        self._require("seed", self.seed >= 0, "0 or more")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise DataSettingsError(f"{name}={getattr(self, name)} is out of range; give {expected}.")
