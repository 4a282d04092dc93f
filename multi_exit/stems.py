"""The stem of a network for large images, made to keep the resolution of small ones."""

from torch import nn

SMALL_INPUT_PX = 48
"""Up to this input side the stem of a known, untrained network keeps the resolution, as CIFAR and MNIST networks do."""

STRIDE_1 = "stride-1"
"""The stem that keeps the resolution, in a network's specification."""


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
