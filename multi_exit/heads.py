"""Exit heads: small classifiers attached to a feature map [B, C, H, W] of the backbone.

`msdnet` is MSDNet's intermediate classifier (Huang et al. 2018, arXiv 1703.09844), which PersEPhonEE uses;
`pooled` is the much cheaper mixed-pooling classifier of SDN (Kaya et al. 2019, arXiv 1810.07052); `auto` takes the
first where it costs at most half of the network up to the exit, and else the largest of the second that does.
"""

import re
from typing import get_args

import torch
from torch import Tensor, nn

from persephonee.multi_exit.costs import count_macs
from persephonee.multi_exit.errors import BackboneNotAllowedError, SettingsError
from persephonee.multi_exit.own_networks import imported
from persephonee.multi_exit.settings import DEFAULT_SOURCES, HeadKind

MSDNET_CHANNELS = 128

HEAD_FRACTION = 0.5
"""The largest fraction of the backbone's MACs up to an exit that a head of the kind "auto" costs."""


def _convolution(in_channels: int, out_channels: int, side: int) -> tuple[list[nn.Module], int]:
    """Return Conv, BatchNorm, ReLU that halve a map of `side` px where there is something to halve."""
    # MSDNet assumes maps of 8 px. On 1 px a 3x3 kernel would multiply zeros; below 4 px a stride would leave
    # nothing to pool.
    kernel = 3 if side > 1 else 1
    stride = 2 if side >= 4 else 1
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    side_after = (side + 2 * (kernel // 2) - kernel) // stride + 1
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()], side_after


class MSDNetHead(nn.Sequential):
    """Two Conv3x3-BatchNorm-ReLU of 128 channels, global average pooling, Linear.

    Args:
        shape: (C, H, W) of the feature map; H and W may be as small as 1.
        num_classes: K, number of logits.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        channels, height, width = shape
        first, side = _convolution(channels, MSDNET_CHANNELS, min(height, width))
        second, _ = _convolution(MSDNET_CHANNELS, MSDNET_CHANNELS, side)
        pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*first, *second, *pooling, nn.Linear(MSDNET_CHANNELS, num_classes))

    @property
    def classifier(self) -> nn.Linear:
        """The last layer."""
        return self[-1]  # type: ignore[return-value]

    def embed(self, features: Tensor) -> Tensor:
        """Return what the classifier takes, shape [B, 128], of a feature map [B, C, H, W]."""
        for layer in list(self)[:-1]:
            features = layer(features)
        return features


class PooledHead(nn.Module):
    """SDN's head: a learned blend of max and average pooling to at most 4x4, then Linear.

    Args:
        shape: (C, H, W) of the feature map; H and W may be as small as 1.
        num_classes: K, number of logits.
        side: of the pooled map, at most.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, side: int = 4) -> None:
        super().__init__()
        channels, height, width = shape
        size = (min(side, height), min(side, width))
        self.average = nn.AdaptiveAvgPool2d(size)
        self.maximum = nn.AdaptiveMaxPool2d(size)
        # sigmoid(0) = 1/2: both poolings weigh the same at the start
        self.blend = nn.Parameter(torch.zeros(()))
        self.classifier = nn.Linear(channels * size[0] * size[1], num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [B, K] of a feature map [B, C, H, W]."""
        return self.classifier(self.embed(features))  # type: ignore[no-any-return]

    def embed(self, features: Tensor) -> Tensor:
        """Return what the classifier takes, shape [B, D], of a feature map [B, C, H, W]."""
        blend = torch.sigmoid(self.blend)
        pooled = blend * self.maximum(features) + (1 - blend) * self.average(features)
        return pooled.flatten(1)  # type: ignore[no-any-return]


HEADS = get_args(HeadKind)
_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def fits(shape: tuple[int, int, int], num_classes: int, backbone_macs: int) -> bool:
    """Return whether a place has a head of the kind "auto", whose cheapest is one linear layer."""
    return shape[0] * num_classes <= HEAD_FRACTION * backbone_macs


def build_head(
    kind: str,
    shape: tuple[int, int, int],
    num_classes: int,
    backbone_macs: int,
    allowed: tuple[str, ...] = DEFAULT_SOURCES,
) -> nn.Module:
    """Return a head for maps of `shape` (C, H, W).

    Args:
        kind: "auto", "msdnet", "pooled", or `package.module:function`, a head of one's own.
        shape: of the feature map.
        num_classes: K, number of logits.
        backbone_macs: the backbone's multiply-adds up to the exit, for "auto".
        allowed: the sources that this machine's owner allows; modules of heads of one's own are named one by one.

    Raises:
        SettingsError: the kind is unknown, or one's own head is none.
        BackboneNotAllowedError: the module of one's own head is not allowed.
    """
    if kind == "msdnet":
        return MSDNetHead(shape, num_classes)
    if kind == "pooled":
        return PooledHead(shape, num_classes)
    if _OWN.fullmatch(kind):
        return _own_head(kind, shape, num_classes, allowed)
    if kind != "auto":
        raise SettingsError(f"head={kind!r} is unknown: use one of {', '.join(HEADS)}, or package.module:function.")
    if count_macs(MSDNetHead(shape, num_classes), shape) <= HEAD_FRACTION * backbone_macs:
        return MSDNetHead(shape, num_classes)
    for side in (4, 2):
        head = PooledHead(shape, num_classes, side)
        if count_macs(head, shape) <= HEAD_FRACTION * backbone_macs:
            return head
    return PooledHead(shape, num_classes, 1)


def _own_head(name: str, shape: tuple[int, int, int], num_classes: int, allowed: tuple[str, ...]) -> nn.Module:
    """Return what `package.module:function` makes of (shape, num_classes), once it has shown that it is a head.

    Its last layer has to be the linear `classifier`, which takes what `embed` returns: the fast schedule trains this
    layer alone, and a device without PyTorch computes it by itself.
    """
    module = name.split(":")[0]
    if module not in allowed:
        raise BackboneNotAllowedError(
            f"head {name!r} comes from {module!r}, but only {', '.join(allowed)} may be used here: "
            f"allow {module!r} in this machine's own configuration if you trust it."
        )
    make = imported(name, "head")
    expected = "a torch.nn.Module with a last nn.Linear named classifier and a method embed"
    probe = torch.linspace(0, 1, 2 * shape[0] * shape[1] * shape[2]).reshape(2, *shape)
    try:
        head = make(shape, num_classes)
        with torch.no_grad():
            head.eval()
            embedded, logits = head.embed(probe), head(probe)
            is_head = isinstance(head.classifier, nn.Linear) and torch.allclose(head.classifier(embedded), logits)
    except Exception as error:  # one's own code may raise anything
        raise SettingsError(f"head {name!r} fails on maps {list(shape)} ({error}): return {expected}.") from None
    if not is_head or logits.shape != (2, num_classes) or embedded.ndim != 2:
        raise SettingsError(f"head {name!r} is none, or gives no logits [B, {num_classes}]: return {expected}.")
    return head  # type: ignore[no-any-return]
