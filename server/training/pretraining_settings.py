"""How the global model is trained."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from persephonee.server.errors import PretrainingError

Mode = Literal["joint", "exits"]
Augmentation = Literal["none", "shift", "affine"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How the global model is trained: SGD with Nesterov momentum, a warm-up and then a cosine down to 0.

    Raises:
        PretrainingError: a setting is out of its range.
    """

    mode: Mode = "joint"
    """"joint": backbone and exits together, for an untrained backbone; "exits": the exits only, for a trained one."""

    epochs: int = 6
    """Passes over the training images at most, >= 1; the schedule spans them."""

    patience: int = 3
    """Stop after this many epochs, >= 1, without a better last exit on users whom training never saw."""

    batch_size: int = 128
    """Images a step, >= 2, since BatchNorm cannot learn from one sample."""

    learning_rate: float = 0.1
    """The largest of the schedule, after the warm-up; > 0."""

    warmup: float = 0.15
    """Fraction of the epochs in which the learning rate rises, in [0, 1)."""

    momentum: float = 0.9
    """Of SGD, in [0, 1)."""

    weight_decay: float = 5e-4
    """Of SGD, >= 0."""

    augmentation: Augmentation = "affine"
    """How images are moved: "none", "shift" (up to 7 % of the side), or "affine" (also rotation, scale, slant)."""

    precision: Precision = "auto"
    """What products are computed in: "bfloat16" computes those of the forward and backward pass in it (automatic mixed
    precision), which pays for large networks and costs a 28 px one a little; "auto" does so on a GPU that can. Weights,
    losses and every evaluation stay in float32."""

    max_samples: int | None = None
    """Train on a random choice of at most this many samples; by default on all."""

    seed: int = 0
    """>= 0."""

    def __post_init__(self) -> None:
        choices = {"mode": Mode, "augmentation": Augmentation, "precision": Precision}
        for name, allowed in ((name, get_args(kind)) for name, kind in choices.items()):
            if getattr(self, name) not in allowed:
                raise PretrainingError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}.")
        for name, least in (("epochs", 1), ("patience", 1), ("batch_size", 2), ("seed", 0), ("max_samples", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise PretrainingError(f"{name}={value} is too small; give {least} or more.")
        for name in ("warmup", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise PretrainingError(f"{name}={getattr(self, name)} is out of range; give a number in [0, 1).")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise PretrainingError(f"learning_rate={self.learning_rate} is out of range; give a number above 0.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise PretrainingError(f"weight_decay={self.weight_decay} is out of range; give 0 or more.")

    def learning_rate_at(self, epoch: float) -> float:
        """Return the learning rate after `epoch` epochs, a fraction within an epoch; in (0, learning_rate]."""
        done = epoch / self.epochs
        if done < self.warmup:
            return self.learning_rate * (0.05 + 0.95 * done / self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))
