"""How users are drawn from a labelled image set; `personalised_imagenet.py` draws them."""

from dataclasses import dataclass
from typing import Literal, get_args

from persephonee.data_partitions.errors import DataSettingsError

Partitioner = Literal["gaussian", "dirichlet", "shards", "natural-id"]


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

    partitioner: Partitioner = "gaussian"
    """The paper's Gaussian popularity, drawn by `PersonalisedImageNet`, or one of Flower's partitioners."""

    dirichlet_alpha: float = 0.5
    """Concentration of the Dirichlet distribution, > 0; the smaller, the fewer classes a user has."""

    shards_per_user: int = 2
    """Shards of each user, >= 1."""

    user_column: str = ""
    """The column that names the users, for natural-id."""

    def __post_init__(self) -> None:
        self._require("num_users", self.num_users >= 1, "1 or more")
        self._require("samples_per_user", self.samples_per_user >= 4, "4 or more")
        self._require(
            "label_skew_width", 0 < self.label_skew_width < float("inf"), "a finite number of classes above 0"
        )
        self._require("image_size", self.image_size is None or 8 <= self.image_size <= 4096, "8 to 4096 px")
        self._require("global_fraction", 0 < self.global_fraction < 1, "a number in (0, 1)")
        self._require("test_fraction", 0 < self.test_fraction < 1, "a number in (0, 1)")
        self._require(
            "partitioner", self.partitioner in get_args(Partitioner), f"one of {', '.join(get_args(Partitioner))}"
        )
        self._require("dirichlet_alpha", 0 < self.dirichlet_alpha < float("inf"), "a finite number above 0")
        self._require("shards_per_user", self.shards_per_user >= 1, "1 or more")
        self._require("seed", self.seed >= 0, "0 or more")

    def division(self) -> dict[str, float | str]:
        """Return what decides which images are for the global model, besides the image set itself."""
        own: dict[str, dict[str, float | str]] = {
            "gaussian": {"seed": self.seed, "global_fraction": self.global_fraction},
            "dirichlet": {"seed": self.seed, "num_users": self.num_users, "dirichlet_alpha": self.dirichlet_alpha},
            "shards": {"seed": self.seed, "num_users": self.num_users, "shards_per_user": self.shards_per_user},
            "natural-id": {"user_column": self.user_column},
        }
        return {"partitioner": self.partitioner, **own[self.partitioner]}

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise DataSettingsError(f"{name}={getattr(self, name)} is out of range; give {expected}.")
