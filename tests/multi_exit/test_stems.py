import torch
from torch import nn

from persephonee.multi_exit.backbones import build_backbone
from persephonee.multi_exit.stems import keep_resolution


def map_sides(model: nn.Module, px: int) -> list[int]:
    """Return the sides of all convolutions' and poolings' outputs, each once, in order."""
    sides: list[int] = []

    def note(_module, _inputs, output):
        if output.shape[-1] not in sides:
            sides.append(output.shape[-1])

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.rand(1, 1, px, px))
    return sides


def test_mobilenet_v2_keeps_the_papers_maps_at_28_px():
    model = build_backbone("mobilenet_v2", 10, 1)
    keep_resolution(model)
    assert map_sides(model, 28) == [28, 14, 7, 4, 2]


def test_a_resnet_loses_the_stride_and_the_pooling_of_its_stem():
    model = build_backbone("resnet18", 10, 1)
    keep_resolution(model)
    assert map_sides(model, 28) == [28, 14, 7, 4]


def test_a_vgg_which_has_no_such_stem_loses_one_pooling_only():
    class SmallVGG(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                *(module for _ in range(3) for module in (nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
            )

    model = SmallVGG()
    keep_resolution(model)
    assert map_sides(model, 28) == [28, 27, 13, 6]
