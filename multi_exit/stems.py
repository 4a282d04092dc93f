"""What a network begins with: normalised images, and a stem for large ones, made to keep the resolution of small."""

import torch
from torch import Tensor, nn

SMALL_INPUT_PX = 48
"""Up to this input side the stem of a known, untrained network keeps the resolution, as CIFAR and MNIST networks do."""

STRIDE_1 = "stride-1"
"""The stem that keeps the resolution, in a network's specification."""


class InputNormalisation(nn.Module):
    """Maps images in [0, 1] to what a trained backbone expects: (x - mean) / std per channel.

    Grey images [B, 1, H, W] become colour where there are three constants. The constants are part of the network's
    specification, not of its weights.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images [B, C, H, W]."""
        return (images - self.mean) / self.std


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


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
