"""ImageNet networks with their published weights, for a part of ImageNet's classes and another input size.

The ResNet-50 v1 of the original release, as ported by Keras Applications, is not torchvision's: the stride of a stage
sits on its first 1x1 convolution, BatchNorm's epsilon is 1e-3, and the input is RGB * 255 minus the training mean. It
enters the library by its name, `persephonee.experiments.studies.imagenet_networks:resnet50_v1`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.weights import read_weights

SOURCE = "persephonee.experiments.studies.imagenet_networks"
CLASSIFIERS = ("fc.weight", "fc.bias", "classifier.1.weight", "classifier.1.bias")
"""The tensors with a row for each class, in ResNets and in MobileNets."""


@dataclass(frozen=True, kw_only=True)
class ImageNetNetwork:
    """A published network.

    Attributes:
        title: its name for a reader.
        backbone: its name for `build_network`.
        file: name of the file with its weights.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, divides the difference.
    """

    title: str
    backbone: str
    file: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NETWORKS = {
    "resnet50": ImageNetNetwork(
        title="ResNet-50",
        backbone=f"{SOURCE}:resnet50_v1",
        file="resnet50_v1_fp16.safetensors",
        mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    ),
    "mobilenet_v2": ImageNetNetwork(
        title="MobileNetV2",
        backbone="mobilenet_v2",
        file="mobilenet_v2-b0353104.pth",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}


def resnet50_v1(num_classes: int, in_channels: int) -> nn.Module:
    """Return an untrained ResNet-50 v1; the library asks for it by name."""
    from torchvision.models import resnet50

    model = resnet50(weights=None, num_classes=num_classes)
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    return model  # type: ignore[no-any-return]


def write_cut_weights(name: str, weights: Path, classes: tuple[int, ...], work: Path) -> Path:
    """Write the weights for some of the classes into the folder `work`, and return the file's path.

    Raises:
        ModelFileError: the weights cannot be read, or a class is not among them.
    """
    path = work / f"{name}-{len(classes)}-classes.safetensors"
    write_bytes_atomically(path, safetensors.torch.save(cut_to_classes(read_weights(weights), classes)))
    return path


def cut_to_classes(state: dict[str, Tensor], classes: tuple[int, ...]) -> dict[str, Tensor]:
    """Return float32 tensors in which the classifier has the rows of `classes` only, in that order.

    Raises:
        ModelFileError: a class is not among the classifier's.
    """
    rows = {name: len(tensor) for name, tensor in state.items() if name in CLASSIFIERS}
    wrong = [label for label in classes for count in rows.values() if not 0 <= label < count]
    if not rows or wrong:
        raise ModelFileError(
            f"the weights' classifier has {rows}, which lacks class {wrong[:1]}: use ImageNet weights."
        )
    chosen = torch.tensor(classes)
    whole = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    return {name: (t[chosen] if name in rows else t).contiguous() for name, t in whole.items()}


def tiny_imagenet_classes(path: Path) -> tuple[int, ...]:
    """Return the numbers of Tiny ImageNet's 200 classes in ImageNet's order, from its `classes.json`.

    Raises:
        ModelFileError: the file does not say them.
    """
    try:
        values = json.loads(path.read_text())
        return tuple(int(number) for number in values["imagenet1k_index"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path} does not list ImageNet's numbers of the classes ({error}): fetch it again."
        ) from None
