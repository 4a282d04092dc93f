"""What a network consists of, and the settings of its losses. Without PyTorch: a device need not have it."""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from persephonee.multi_exit.errors import ModelFileError, NoGPUError, SettingsError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

TORCHVISION = "torchvision"
TIMM = "timm"
DEFAULT_SOURCES = (TORCHVISION, TIMM)
"""Where a backbone may come from unless the owner of the machine allows more (`package.module`, in full)."""

StemKind = Literal["auto", "original", "stride-1"]
"""What becomes of a network's first layers: see `build_network`."""

UNLABELLED = -1
"""The label of a sample that has none."""

HeadKind = Literal["auto", "msdnet", "pooled"]
"""msdnet is the paper's head; pooled is much cheaper; auto takes the first that is cheap beside the backbone."""

DeviceKind = Literal["auto", "cpu", "cuda"]
Runtime = Literal["auto", "onnx", "torch"]
GraphKind = Literal["float32", "int8"]


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
class RuntimeSettings:
    """On what a device runs the network.

    Raises:
        SettingsError: a setting is out of its range.
    """

    runtime: Runtime = "auto"
    """onnx runs the graphs that the model carries on ONNX Runtime, and needs no PyTorch; torch runs PyTorch; auto takes
    onnx where the model carries graphs and the schedule is fast, or where PyTorch is not installed."""

    providers: str = "CPU"
    """ONNX Runtime's execution providers, with commas, such as XNNPACK,CPU or TensorRT,CUDA,CPU: the first that can run
    an operator runs it."""

    threads: int = 0
    """How many threads ONNX Runtime gives an operator; 0 takes one for each core."""

    graphs: GraphKind = "float32"
    """Which of the model's graphs run: int8 are smaller, and there once `export --int8` has written them; they are a
    backbone of their own, with a store of its own."""

    def __post_init__(self) -> None:
        if self.graphs not in get_args(GraphKind):
            raise SettingsError(f"graphs={self.graphs!r} is unknown; use one of {', '.join(get_args(GraphKind))}.")
        if self.graphs == "int8" and self.runtime == "torch":
            raise SettingsError("graphs=int8 run on ONNX Runtime, and runtime=torch does not: use runtime=onnx.")
        if self.runtime not in get_args(Runtime):
            raise SettingsError(f"runtime={self.runtime!r} is unknown; use one of {', '.join(get_args(Runtime))}.")
        if self.threads < 0:
            raise SettingsError(f"threads={self.threads} is out of range; give 0 or more.")
        if not self.provider_names:
            raise SettingsError("providers names none; give one at least, such as CPU.")

    @property
    def provider_names(self) -> tuple[str, ...]:
        """The providers by ONNX Runtime's own names."""
        short = (name.strip().removesuffix("ExecutionProvider") for name in self.providers.split(","))
        return tuple(f"{name}ExecutionProvider" for name in short if name)


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


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """All that is needed to build the network again, apart from its weights.

    Attributes:
        backbone: a torchvision name, `timm/NAME`, `package.module:function`, or `nn.Module:CLASS` of one in memory.
        num_classes: K.
        in_channels: 1 or 3.
        input_size: side of the square images, in px.
        stem: "original", or "stride-1" where the stem keeps the resolution.
        head: "auto", "msdnet" or "pooled".
        cuts: the nodes of the traced graph behind which the M exits sit.
        mean: per channel, subtracted from images in [0, 1] inside the network; empty for none. Three, where
            in_channels is 1, make grey images colour.
        std: per channel, divides the difference; empty for none.
    """

    backbone: str
    num_classes: int
    in_channels: int
    input_size: int
    stem: str
    head: str
    cuts: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def num_exits(self) -> int:
        """M, the number of early exits."""
        return len(self.cuts)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.in_channels, self.input_size, self.input_size)

    def to_json(self) -> str:
        """Return the specification as canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the specification that `to_json` wrote.

        Raises:
            ModelFileError: a key is missing, unknown, or of another type.
        """
        # --help reads these settings and asks for no JSON
        from persephonee.multi_exit.checked_json import parse_json_object

        try:
            values = parse_json_object(text)
            lists = {key: tuple(values[key]) for key in ("cuts", "mean", "std")}
            spec = cls(**{**values, **lists})
            spec._check_types()
            return spec
        except (ValueError, TypeError, KeyError) as error:
            raise ModelFileError(
                f"the network's specification cannot be read ({error}): save the model again."
            ) from None

    def _check_types(self) -> None:
        numbers = (self.num_classes, self.in_channels, self.input_size)
        words = (self.backbone, self.stem, self.head, *self.cuts)
        fits = all(type(n) is int for n in numbers) and all(isinstance(w, str) for w in words)
        if not fits or not all(isinstance(x, int | float) and math.isfinite(x) for x in (*self.mean, *self.std)):
            raise TypeError("a value is of another type")
        if not self.cuts or len(set(self.cuts)) < len(self.cuts):
            raise ValueError("its cuts are none, or one of them stands there twice")
        if self.num_classes < 2 or self.in_channels not in (1, 3) or self.input_size < 1:
            raise ValueError("a number is out of its range")


class SpecifiedNetwork:
    """What follows from a network's specification, whatever the network runs on."""

    spec: NetworkSpec

    graphs_fingerprint: str = ""
    """Of the graphs that it runs on, together with its weights; empty where it runs on the weights themselves."""

    @property
    def num_exits(self) -> int:
        """M, the number of early exits."""
        return self.spec.num_exits

    @property
    def num_classes(self) -> int:
        """K, the number of logits of each exit."""
        return self.spec.num_classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.spec.input_shape


class Fingerprint:
    """SHA-256 over a specification and its network's arrays, one by one in the order of their names."""

    def __init__(self, spec: NetworkSpec) -> None:
        self._digest = hashlib.sha256(spec.to_json().encode())

    def add(self, name: str, array: "NDArray[Any]") -> None:
        """Take the next array in."""
        # written as PyTorch names its types, with PyTorch and without
        self._digest.update(f"{name} torch.{array.dtype} {array.shape}".encode())
        self._digest.update(array.tobytes())

    def hexdigest(self) -> str:
        """Return the fingerprint of the arrays so far."""
        return self._digest.hexdigest()


def fingerprint_of(spec: NetworkSpec, arrays: "Iterable[tuple[str, NDArray[Any]]]") -> str:
    """Return the fingerprint of a network of these arrays.

    Args:
        spec: of the network.
        arrays: with their names, by which they are sorted.
    """
    digest = Fingerprint(spec)
    for name, array in arrays:
        digest.add(name, array)
    return digest.hexdigest()
