"""Which global model is made, and from whose data. PyTorch is not loaded: the command line reads this for --help."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from persephonee.data_partitions.settings import PAPER_PERSONAL_FRACTION
from persephonee.multi_exit.settings import DEFAULT_SOURCES, StemKind
from persephonee.server.errors import PretrainingError
from persephonee.server.training.pretraining_settings import PretrainSettings

LEAST_PERSONAL_USERS = 100
"""The paper's ratio leaves too few users of a small data set to say anything about users."""


@dataclass(frozen=True, kw_only=True)
class UserFractions:
    """Which users' data the global model may see.

    Raises:
        PretrainingError: a number is out of its range.
    """

    personal_users: float | None = None
    """Users kept back to personalise: a number of them, or below 1 a fraction of all. By default the paper's 250 in
    3,500, but 100 where a third of all users is as many; nobody of a pool that is the global model's anyway."""

    validation_fraction: float = 0.1
    """Fraction of the other users who only validate, in (0, 1)."""

    max_users: int | None = None
    """Train and validate on at most this many users, >= 2; by default on all."""

    calibration_users: int = 100
    """Users who train nothing and whose risk curves ship with the model, at most; 0 leaves the model without."""

    def __post_init__(self) -> None:
        if self.calibration_users < 0:
            raise PretrainingError(f"calibration_users={self.calibration_users} is negative; give a number, or 0.")
        wanted = self.personal_users
        if wanted is not None and (not 0 <= wanted < math.inf or (wanted >= 1 and wanted != int(wanted))):
            raise PretrainingError(
                f"personal_users={wanted} is out of range; give a number of users, or a fraction below 1."
            )
        if not 0 < self.validation_fraction < 1:
            raise PretrainingError(
                f"validation_fraction={self.validation_fraction} is out of range; give a number in (0, 1)."
            )
        if self.max_users is not None and self.max_users < 2:
            raise PretrainingError(f"max_users={self.max_users} is too small; one trains and another validates.")

    def num_personal(self, num_users: int) -> int:
        """Return how many of `num_users` are kept back."""
        if self.personal_users is None:
            paper = round(num_users * PAPER_PERSONAL_FRACTION)
            return max(paper, min(LEAST_PERSONAL_USERS, num_users // 3))
        if self.personal_users < 1:
            return round(self.personal_users * num_users)
        return int(self.personal_users)


@dataclass(frozen=True, kw_only=True)
class GlobalModelSettings:
    """Which network, and how it is trained."""

    backbone: str = "mobilenet_v2"
    """A torchvision classification model, timm/NAME, or package.module:function."""

    num_exits: int = 6
    """M, the number of early exits besides the original classifier."""

    head: str = "auto"
    """Kind of the early exits: msdnet as in the paper, the much cheaper pooled, auto, which takes msdnet where it costs
    at most half of the network up to the exit and pooled elsewhere, or package.module:function, a head of one's own."""

    stem: StemKind = "auto"
    """What becomes of the network's first layers: original leaves them, stride-1 keeps the resolution of small images,
    and auto does so up to 48 px for untrained torchvision and timm networks alone."""

    weights: Path | None = None
    """Trained weights of the backbone (.safetensors or .pth), so that only the exits learn; by default
    it begins with random ones."""

    mean: tuple[float, ...] = ()
    """What trained weights expect to be subtracted from images in [0, 1], per channel; none by default."""

    std: tuple[float, ...] = ()
    """What the difference is divided by, per channel; given together with the mean."""

    users: UserFractions = field(default_factory=UserFractions)
    training: PretrainSettings = field(default_factory=PretrainSettings)

    sources: tuple[str, ...] = DEFAULT_SOURCES
    """Where backbones may come from."""
