"""What clients are asked to share, how the server merges it, and what noise covers it."""

import importlib.util
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from persephonee.fl_app.errors import RunConfigError

Dtype = Literal["float32", "float16"]
Strategy = Literal["fedavg", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum"]
NoisePlace = Literal["server", "clients"]


@dataclass(frozen=True, kw_only=True)
class SharingSettings:
    """Sharing of exits; without `share_exits` a round is metrics-only.

    Raises:
        RunConfigError: a setting is out of its range, or would do nothing.
    """

    share_exits: bool = False
    """Ask the clients for their exits, and merge those of the clients whose owners permit it."""

    sharing_fraction: float = 1.0
    """Fraction of a simulation's users who permit it, in [0, 1]; a device says so in its own node configuration."""

    share_dtype: Dtype = "float32"
    """Of the exits on their way up and down: float32, or float16 at half the bytes."""

    strategy: str = "fedavg"
    """What merges each exit: Flower's fedavg, fedadam, fedyogi, fedmedian, fedtrimmedavg or krum, or a strategy of
    one's own as package.module:function, from a module that `sources` names."""

    server_learning_rate: float = 0.01
    """eta of fedadam and fedyogi, above 0."""

    trimmed_fraction: float = 0.2
    """fedtrimmedavg: fraction of the values that is cut off at either end, in [0, 0.5)."""

    malicious_clients: int = 0
    """krum: how many clients may lie; it needs 2 f + 3 clients for f of them."""

    clip_fraction: float = 0.2
    """Largest change of a client's exit, over the norm of the exit that the run began with; 0 clips none."""

    weight_cap: float = 1.0
    """Most that a client weighs in an average, over the median of the clients' samples; 0 caps none."""

    min_sharers: int = 2
    """An exit is merged where so many clients sent it, and else stays as it was; 1 would publish a client's exit."""

    def __post_init__(self) -> None:
        _require("sharing-fraction", self.sharing_fraction, 0 <= self.sharing_fraction <= 1, "a fraction in [0, 1]")
        _require_one_of("share-dtype", self.share_dtype, Dtype)
        if not self.has_own_strategy:
            _require_one_of("strategy", self.strategy, Strategy)
        rate = self.server_learning_rate
        _require("server-learning-rate", rate, 0 < rate < math.inf, "a finite number above 0")
        _require("trimmed-fraction", self.trimmed_fraction, 0 <= self.trimmed_fraction < 0.5, "a fraction in [0, 0.5)")
        _require("malicious-clients", self.malicious_clients, self.malicious_clients >= 0, "0 or more")
        for key, value in (("clip-fraction", self.clip_fraction), ("weight-cap", self.weight_cap)):
            _require(key, value, 0 <= value < math.inf, "a finite number, 0 or more")
        _require("min-sharers", self.min_sharers, self.min_sharers >= 1, "1 or more")
        if self.strategy != "fedavg" and not self.share_exits:
            raise RunConfigError(f"strategy={self.strategy} merges exits, and none are shared: say share-exits.")
        if self.malicious_clients and self.strategy != "krum":
            raise RunConfigError(f"malicious-clients concerns krum, got strategy={self.strategy}: leave it at 0.")

    @property
    def has_own_strategy(self) -> bool:
        """Whether the strategy is none of Flower's that are known by a name."""
        return re.fullmatch(r"[\w.]+:\w+", self.strategy) is not None

    @property
    def needed(self) -> int:
        """How many clients must have sent an exit before it is merged."""
        return max(self.min_sharers, 2 * self.malicious_clients + 3 if self.strategy == "krum" else 1)

    def check_participants(self, count: int) -> None:
        """Refuse a federation that is too small for an exit ever to be merged.

        Raises:
            RunConfigError: fewer clients take part than the strategy needs.
        """
        if self.share_exits and count < self.needed:
            raise RunConfigError(
                f"strategy={self.strategy} merges an exit that {self.needed} clients or more have sent, and {count} "
                "take part: ask more clients, or lower min-sharers or malicious-clients."
            )


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """Differential privacy of the exits that are shared, at the level of a client.

    Raises:
        RunConfigError: a setting is out of its range.
    """

    dp_noise_multiplier: float = 0.0
    """z, the noise's standard deviation over the clipping norm; 0 is no noise and no privacy, 1 is strong."""

    dp_clipping_norm: float = 1.0
    """C, the L2 norm to which the change of a client's exits is clipped, above 0."""

    dp_delta: float = 1e-5
    """delta at which epsilon is stated, in (0, 1); less than one over the number of clients."""

    dp_noise_at: NoisePlace = "server"
    """server: noise on the merged exits, for clients who trust the server; clients: each adds noise of its own."""

    def __post_init__(self) -> None:
        z, norm = self.dp_noise_multiplier, self.dp_clipping_norm
        _require("dp-noise-multiplier", z, 0 <= z < math.inf, "a finite number, 0 or more")
        _require("dp-clipping-norm", norm, 0 < norm < math.inf, "a finite number above 0")
        _require("dp-delta", self.dp_delta, 0 < self.dp_delta < 1, "a number between 0 and 1")
        _require_one_of("dp-noise-at", self.dp_noise_at, NoisePlace)

    @property
    def is_on(self) -> bool:
        """Whether noise is added."""
        return self.dp_noise_multiplier > 0

    def check_accountant(self) -> None:
        """Refuse noise whose epsilon nobody could state.

        Raises:
            RunConfigError: the accountant is not installed.
        """
        if self.is_on and importlib.util.find_spec("dp_accounting") is None:
            raise RunConfigError(
                "dp-noise-multiplier needs dp-accounting, which states epsilon: pip install 'persephonee[privacy]'."
            )

    def check_sharing(self, sharing: SharingSettings) -> None:
        """Refuse noise where it would cover nothing, or less than is stated.

        Raises:
            RunConfigError: exits are not shared, or are merged in a way that has no accounting.
        """
        if self.is_on and not sharing.share_exits:
            raise RunConfigError(
                f"dp-noise-multiplier={self.dp_noise_multiplier:g} covers shared exits, and none are shared: metrics "
                "leave a client as they are; say share-exits, or leave the noise out."
            )
        if self.is_on and self.dp_noise_at == "server" and sharing.strategy != "fedavg":
            raise RunConfigError(
                f"noise at the server is accounted for averages only, got strategy={sharing.strategy}: take fedavg, or "
                "dp-noise-at=clients."
            )


def _require(key: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise RunConfigError(f"{key}={value} is out of range: expected {expected}.")


def _require_one_of(key: str, value: object, kind: Any) -> None:
    allowed = get_args(kind)
    _require(key, value, value in allowed, f"one of {', '.join(allowed)}")
