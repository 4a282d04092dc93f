"""Backbones by name: torchvision, timm (optional) and one's own, adapted to channels, classes and input size."""

import re
import warnings

from torch import nn

from persephonee.multi_exit.errors import BackboneError, BackboneNotAllowedError
from persephonee.multi_exit.own_networks import GIVEN, convolutions, from_module
from persephonee.multi_exit.settings import DEFAULT_SOURCES, TIMM, TORCHVISION

_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# timm fetches `hf-hub:` and reads `local-dir:` names; a name that came over the network must not make it do so
_TIMM = re.compile(r"timm/\w[\w.-]*")


def source_of(name: str) -> str:
    """Return "torchvision", "timm", or the module of a `package.module:function` name."""
    if name.startswith("timm/"):
        return TIMM
    return name.split(":")[0] if _OWN.fullmatch(name) else TORCHVISION


def is_known_family(name: str) -> bool:
    """Return whether the backbone is torchvision's or timm's, whose stems are known to be made for large images."""
    return ":" not in name


def build_backbone(
    name: str, num_classes: int, in_channels: int, allowed: tuple[str, ...] = DEFAULT_SOURCES
) -> nn.Module:
    """Return an untrained CNN for classification, in eval() mode, its stem as published.

    The first convolution of a torchvision or timm network is made for `in_channels`; one's own is left as it is.

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
    if name.startswith(GIVEN):
        raise BackboneError(
            f"the model was made from a network in memory, {name.removeprefix(GIVEN)}: give the same network to "
            "load_network(folder, backbone=...), or build the model from package.module:function."
        )
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
        return from_module(name, num_classes, in_channels).eval()
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


def _set_in_channels(model: nn.Module, name: str, in_channels: int) -> None:
    """Replace the first convolution by one for `in_channels`, in place."""
    path, first = next(convolutions(model), (None, None))
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
