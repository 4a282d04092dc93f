"""How a device watches itself, and what it keeps. PyTorch is not loaded: the command line reads this for --help."""

import math
from dataclasses import dataclass, field

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.runtime.conditions import ConditionSettings
from persephonee.clients.runtime.drift import DriftSettings


@dataclass(frozen=True, kw_only=True)
class OrchestratorSettings:
    """How a device watches itself.

    Raises:
        ClientSettingsError: a setting is out of its range.
    """

    p_expl: float = 0.1
    """Fraction of the samples of which the last exit is computed too, in [0, 1], on a device that is fed and idle."""

    scarce_exploration: float = 0.25
    """What is left of `p_expl` on an empty battery or under full load, as a fraction of it, in [0, 1]."""

    scarce_tolerance: float = 2.0
    """By what the drop tolerance is multiplied there before the threshold is raised, >= 1: that costs energy."""

    initial_threshold: float = 0.9
    """thr_conf of the global exits until the first round, in [0, 1]."""

    drop_tolerance: float = 0.01
    """How much less the policy may agree with the last exit than at calibration, in [0, 1]."""

    window: int = 30
    """Explored samples from which thr'_conf is chosen, at least 5."""

    collapse_window: int = 50
    """Samples over which the exit rate is compared with the calibration's, at least 10."""

    collapse_fraction: float = 0.5
    """The exit rate has collapsed where it is below this fraction of the calibration's, in [0, 1]; 0 never flags it."""

    retry_frames: int = 50
    """Samples that must pass after a round was given up, or ended its process twice; each further time doubles them."""

    drift: DriftSettings = field(default_factory=DriftSettings)
    """The rule that notices a rising loss."""

    conditions: ConditionSettings = field(default_factory=ConditionSettings)
    """When a round may begin."""

    adapts: bool = True
    """Whether drift raises the threshold and asks for rounds; False only watches."""

    max_rounds: int | None = None
    """No round begins after so many; 0 never personalises, None sets no limit."""

    def __post_init__(self) -> None:
        for name in ("p_expl", "initial_threshold", "drop_tolerance", "collapse_fraction"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a number in [0, 1]")
        self._require("scarce_exploration", 0 <= self.scarce_exploration <= 1, "a number in [0, 1]")
        self._require("scarce_tolerance", 1 <= self.scarce_tolerance < math.inf, "a finite number >= 1")
        self._require("window", self.window >= 5, "at least 5")
        self._require("collapse_window", self.collapse_window >= 10, "at least 10")
        self._require("retry_frames", self.retry_frames >= 0, "at least 0")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ClientSettingsError(f"{name}={getattr(self, name)} is out of range: expected {expected}.")


@dataclass(frozen=True, kw_only=True)
class SampleStoreSettings:
    """Bounds of the sample store.

    Raises:
        ClientSettingsError: a setting is out of its range.
    """

    max_bytes: int = 64 * 2**20
    """Bytes of the stored images together; each part has its fraction of it, and its oldest samples go first."""

    max_age_days: float = 90.0
    """Days of running time for which images are kept: a jump of the clock ages nothing by more than a third of this."""

    calibration_fraction: float = 0.25
    """Fraction of the samples that is never trained on, in (0, 1)."""

    similar_bits: int = 2
    """Hashes that differ in at most so many of their 128 bits belong to near-duplicates; -1 finds none."""

    max_similar: int = 3
    """How many near-duplicates of one image are kept, itself included."""

    def __post_init__(self) -> None:
        # the database counts in 64 bits
        self._require("max_bytes", 1 <= self.max_bytes < 2**63, "1 to 2**63 - 1")
        self._require("max_age_days", self.max_age_days > 0, "a number > 0")
        self._require("calibration_fraction", 0 < self.calibration_fraction < 1, "a number in (0, 1)")
        self._require("similar_bits", self.similar_bits >= -1, "at least -1")
        self._require("max_similar", self.max_similar >= 1, "at least 1")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ClientSettingsError(f"{name}={getattr(self, name)} is out of range: expected {expected}.")
