"""The settings of the network and its losses. PyTorch is not loaded: the command line reads them for --help."""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from persephonee.multi_exit.errors import NoGPUError, SettingsError

if TYPE_CHECKING:
    import torch

TORCHVISION = "torchvision"
TIMM = "timm"
DEFAULT_SOURCES = (TORCHVISION, TIMM)
"""Where a backbone may come from unless the owner of the machine allows more (`package.module`, in full)."""

StemKind = Literal["auto", "original", "stride-1"]
"""What becomes of a network's first layers: see `build_network`."""

HeadKind = Literal["auto", "msdnet", "pooled"]
"""msdnet is the paper's head; pooled is much cheaper; auto takes the first that is cheap beside the backbone."""

DeviceKind = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """On what PyTorch computes.

    Raises:
        SettingsError: a setting is out of its range.
    """

    device: DeviceKind = "auto"
    """Where PyTorch computes: on a GPU (cuda), on the processor (cpu), or auto, a GPU where PyTorch finds one. Results
    repeat bit for bit on one kind of device, and differ by rounding between the two."""

    gpu_fraction: float = 0.25
    """What Ray gives each simulated client of a GPU, in (0, 1]: at 0.25, four clients share one at any time."""

    def __post_init__(self) -> None:
        if self.device not in get_args(DeviceKind):
            raise SettingsError(f"device={self.device!r} is unknown; use one of {', '.join(get_args(DeviceKind))}.")
        if not 0 < self.gpu_fraction <= 1:
            raise SettingsError(f"gpu_fraction={self.gpu_fraction} is out of range; give a number in (0, 1].")

    def torch_device(self) -> "torch.device":
        """Return the device, and make PyTorch compute on it as repeatably and as exactly as on a processor.

        Raises:
            NoGPUError: a GPU is asked for, and PyTorch finds none.
        """
        import torch

        if self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise NoGPUError(
                "device=cuda asks for a GPU and PyTorch finds none here: take device=cpu, or install NVIDIA's driver "
                "and a build of PyTorch for CUDA."
            )
        # cuBLAS reads it when it is first used; an operation without a repeatable form warns
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # float32 means float32: by default convolutions round to 10 bits
        torch.backends.cudnn.allow_tf32 = False
        return torch.device("cuda")


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

    @property
    def is_learning(self) -> bool:
        """Whether the exits are trained at all; with three zeros they are not, as in the scheme `prior`."""
        return self.alpha > 0 or self.beta > 0 or self.gamma > 0
