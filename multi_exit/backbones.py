"""Backbones by name: torchvision, timm (optional) and one's own, adapted to channels, classes and input size."""

import importlib
import re
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from persephonee.multi_exit.errors import BackboneError, BackboneNotAllowedError

TORCHVISION = "torchvision"
TIMM = "timm"
DEFAULT_SOURCES = (TORCHVISION, TIMM)
"""Where a backbone may come from unless the owner of the machine allows more (`package.module`, in full)."""

SMALL_INPUT_PX = 48
"""Up to this input side the stem keeps the resolution, as is usual for CIFAR and MNIST networks."""

_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# timm fetches `hf-hub:` and reads `local-dir:` names; a name that came over the network must not make it do so
_TIMM = re.compile(r"timm/\w[\w.-]*")


def source_of(name: str) -> str:
    """Return "torchvision", "timm", or the module of a `package.module:function` name."""
    if name.startswith("timm/"):
        return TIMM
    return name.split(":")[0] if _OWN.fullmatch(name) else TORCHVISION


def build_backbone(
    name: str, num_classes: int, in_channels: int, allowed: tuple[str, ...] = DEFAULT_SOURCES
) -> nn.Module:
    """Return an untrained CNN for classification, in eval() mode, its stem as published.

    Args:
        name: a torchvision classification model, `timm/NAME`, or `package.module:function`, a function that
            takes `num_classes` and `in_channels`.
        num_classes: K, at least 2.
        in_channels: 1 or 3.
        allowed: the sources that this machine's owner allows; own modules are named one by one.

    Raises:
        BackboneError: the name is unknown.
        BackboneNotAllowedError: its source is not allowed.
    """
    source = source_of(name)
    if source not in allowed:
        raise BackboneNotAllowedError(
            f"backbone {name!r} comes from {source!r}, but only {', '.join(allowed)} may be built here: "
            f"allow {source!r} in this machine's own configuration if you trust it."
        )
    if source == TORCHVISION:
        model = _from_torchvision(name, num_classes)
    elif source == TIMM:
        model = _from_timm(name, num_classes, in_channels)
    else:
        model = _from_module(name, num_classes, in_channels)
    _set_in_channels(model, name, in_channels)
    return model.eval()


def _from_torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision import models

    classification = [n for n in models.list_models() if models.get_model_builder(n).__module__.count(".") == 2]
    if name not in classification:
        near = [n for n in classification if n.startswith(name[:5])] or ["mobilenet_v2", "resnet50"]
        raise BackboneError(
            f"backbone {name!r} is not a torchvision classification model: use one such as {', '.join(near[:4])}, "
            "timm/NAME, or package.module:function."
        )
    # GoogLeNet and Inception train auxiliary classifiers, which are early exits of another kind
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return models.get_model(name, weights=None, num_classes=num_classes, **extra)  # type: ignore[no-any-return]


def _from_timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    if not _TIMM.fullmatch(name):
        raise BackboneError(f"backbone {name!r} is not in timm: use timm/NAME, NAME from timm.list_models().")
    try:
        import timm
    except ImportError:
        raise BackboneError(f"backbone {name!r} needs timm: install it with `pip install timm`.") from None
    try:
        return timm.create_model(
            name.removeprefix("timm/"), pretrained=False, num_classes=num_classes, in_chans=in_channels
        )
    except RuntimeError as error:
        raise BackboneError(f"backbone {name!r} is not in timm ({error}): see timm.list_models().") from None


def _from_module(name: str, num_classes: int, in_channels: int) -> nn.Module:
    module_name, function_name = name.split(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise BackboneError(f"backbone {name!r} cannot be imported ({error}): check the name and PYTHONPATH.") from None
    try:
        model = function(num_classes=num_classes, in_channels=in_channels)
    except TypeError as error:
        raise BackboneError(
            f"backbone {name!r} cannot be called ({error}): take the arguments num_classes and in_channels."
        ) from None
    if not isinstance(model, nn.Module):
        raise BackboneError(f"backbone {name!r} returned {type(model).__name__}: return a torch.nn.Module.")
    return model


def _set_in_channels(model: nn.Module, name: str, in_channels: int) -> None:
    """Replace the first convolution by one for `in_channels`, in place."""
    path, first = next(_convolutions(model), (None, None))
    if path is None or first is None:
        raise BackboneError(f"backbone {name!r} has no convolution: exits attach to the feature maps of a CNN.")
    if first.in_channels == in_channels:
        return
    replacement = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    model.set_submodule(path, replacement)


def keep_resolution(model: nn.Module) -> None:
    """Make the stem keep the resolution, in place: its first reduction gets stride 1.

    So does the pooling behind it where a convolution came first, as in a ResNet; a VGG has no such stem, it loses
    one pooling. MobileNetV2 then works on maps of 28, 14, 7, 4 and 2 px for 28 px input, as in the paper's FEMNIST
    network.
    """
    reductions = (
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.MaxPool2d) and max(_pair(module.stride)) > 1
    )
    first, second = next(reductions, None), next(reductions, None)
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.MaxPool2d):
        second.stride = (1, 1)
    if first is not None:
        first.stride = (1, 1)


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], name: str) -> None:
    """Load trained weights by their names, in place.

    A first convolution that was trained on colours serves grey images with the sum over its channels: it answers as to
    an image whose three channels are the same.

    Raises:
        BackboneError: a parameter has no weights, as of another architecture or of another number of classes.
    """
    own = model.state_dict()
    state = dict(state)
    path, first = next(_convolutions(model), ("", None))
    stem = f"{path}.weight"
    if first is not None and stem in state and first.weight.shape == state[stem].sum(1, keepdim=True).shape:
        state[stem] = state[stem].sum(1, keepdim=True)
    fitting = {k: v.to(own[k].dtype) for k, v in state.items() if k in own and own[k].shape == v.shape}
    # a counter that no inference reads; files from before PyTorch 0.4.1 lack it
    missing = [k for k in own if k not in fitting and not k.endswith("num_batches_tracked")]
    if len(missing) > len(own) / 2:
        raise BackboneError(
            f"the weights do not fit {name}: {len(fitting)} of {len(own)} tensors have its names and shapes; "
            "use weights of the same architecture."
        )
    if missing:
        shapes = [tuple(state[k].shape) if k in state else "nothing" for k in missing[:1]]
        raise BackboneError(
            f"the weights do not fit {name}: {missing[0]} has the shape {tuple(own[missing[0]].shape)} here and "
            f"{shapes[0]} in the file; use weights for this number of classes and channels, or train from scratch."
        )
    # into the model's own dictionary, whose version numbers torchvision's MNASNet insists on
    own.update(fitting)
    model.load_state_dict(own)


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    return ((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
