"""How exits are meta-learned."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from persephonee.server.errors import PretrainingError

Method = Literal["reptile", "fomaml"]
DEFAULT_RATES: dict[str, float] = {"reptile": 0.5, "fomaml": 0.02}
"""Reptile moves this fraction of the way to the users' own exits; FOMAML takes a step of gradient descent."""


@dataclass(frozen=True, kw_only=True)
class MetaSettings:
    """How exits are meta-learned: who is asked how often, and the inner and the outer steps.

    Raises:
        PretrainingError: a setting is out of its range.
    """

    method: Method = "reptile"
    """"reptile" (Nichol et al. 2018, arXiv 1803.02999) or "fomaml", first-order MAML (Finn et al. 2017, 1703.03400)."""

    epochs: int = 4
    """Passes over the training users, >= 1."""

    users_per_step: int = 4
    """Users whose results make one outer step, >= 1."""

    rate: float | None = None
    """Of the outer steps, > 0, falling linearly to 0; by default the method's own, 0.5 or 0.02."""

    inner_steps: int = 10
    """Steps of SGD on one user's samples, >= 1."""

    inner_rate: float = 0.01
    """Learning rate of these steps, > 0; a device's own by default."""

    inner_momentum: float = 0.9
    """In [0, 1); a device's own by default."""

    batch_size: int = 32
    """Samples an inner step, >= 2, since BatchNorm cannot learn from one."""

    max_samples: int = 128
    """Samples of one user at most, >= 8; they bound the memory and the time."""

    cache_mb: int = 1024
    """MiB for users' features, >= 0; those of users beyond are computed again in every epoch."""

    seed: int = 0
    """>= 0."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise PretrainingError(f"method={self.method!r} is unknown; use one of {', '.join(get_args(Method))}.")
        least = {"epochs": 1, "users_per_step": 1, "inner_steps": 1, "batch_size": 2, "max_samples": 8}
        for name, smallest in (*least.items(), ("cache_mb", 0), ("seed", 0)):
            if getattr(self, name) < smallest:
                raise PretrainingError(f"{name}={getattr(self, name)} is too small; give {smallest} or more.")
        for name in ("rate", "inner_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise PretrainingError(f"{name}={value} is out of range; give a number above 0.")
        if self.method == "reptile" and self.outer_rate > 1:
            raise PretrainingError(f"rate={self.rate} would go past the users' exits; give Reptile 1 or less.")
        if not 0 <= self.inner_momentum < 1:
            raise PretrainingError(f"inner_momentum={self.inner_momentum} is out of range; give a number in [0, 1).")

    @property
    def outer_rate(self) -> float:
        """The rate of the first outer step."""
        return DEFAULT_RATES[self.method] if self.rate is None else self.rate
