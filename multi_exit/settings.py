"""The settings of the network and its losses. PyTorch is not loaded: the command line reads them for --help."""

import math
from dataclasses import dataclass
from typing import Literal

from persephonee.multi_exit.errors import SettingsError

TORCHVISION = "torchvision"
TIMM = "timm"
DEFAULT_SOURCES = (TORCHVISION, TIMM)
"""Where a backbone may come from unless the owner of the machine allows more (`package.module`, in full)."""

HeadKind = Literal["auto", "msdnet", "pooled"]
"""msdnet is the paper's head; pooled is much cheaper; auto takes the first that is cheap beside the backbone."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The weights of Eq. (1): alpha CE(y_i, y) + beta KL_T(y_i, y_last) + gamma CE(y_i, argmax y_last).

    The printed formula shows excl() in the place of alpha and gamma; the text says that they weigh the terms.

    Attributes:
        alpha: weight of the labels, >= 0; supervised.
        beta: weight of the last exit's distribution, >= 0; self-distillation.
        gamma: weight of the last exit's decision, >= 0; self-supervision. Excludes alpha.
        temperature: T of the distillation, > 0; typically 1 to 4.
        squared_temperature: multiply the KL term by T^2, so that its gradient keeps its size when T changes
            (Hinton et al. 2015, arXiv 1503.02531). On by default; it changes nothing at T = 1.
    """

    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0
    temperature: float = 1.0
    squared_temperature: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SettingsError(f"{name}={value} is no weight: expected a finite number >= 0.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise SettingsError(f"temperature={self.temperature} is out of range: expected a finite number > 0.")
        if self.alpha > 0 and self.gamma > 0:
            raise SettingsError(
                f"alpha={self.alpha} and gamma={self.gamma} exclude each other: learn from the labels (alpha) "
                "or from the last exit's decisions (gamma), and set the other to 0."
            )
        if self.alpha == self.beta == self.gamma == 0:
            raise SettingsError("alpha, beta and gamma are all 0, so there is nothing to learn: set one of them.")
