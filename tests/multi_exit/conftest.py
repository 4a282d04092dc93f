import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.network import MultiExitNetwork

MODULE = "own_backbones_of_the_tests"


class TinyCNN(nn.Module):
    """Three convolutions, one of them depthwise, with BatchNorm: small enough to count by hand."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.activation = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.activation(self.norm(self.first(images)))
        features = self.activation(self.second(features))
        features = self.activation(self.depthwise(features))
        return self.classifier(features.mean((2, 3)))


def importable(patch: pytest.MonkeyPatch, function: Callable[..., nn.Module]) -> str:
    """Make a backbone of one's own importable and return its name."""
    module = types.ModuleType(MODULE)
    module.build = function  # type: ignore[attr-defined]
    patch.setitem(sys.modules, MODULE, module)
    return f"{MODULE}:build"


def make_tiny_network(patch: pytest.MonkeyPatch) -> MultiExitNetwork:
    """Return the network of `tiny_network`, whose weights are the same each time."""
    name = importable(patch, TinyCNN)
    network = build_network(name, num_exits=2, num_classes=10, input_size=64, head="msdnet", allowed=(MODULE,))
    with torch.no_grad():
        network.train()(torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(1)))
    return network.eval()


@pytest.fixture
def own_backbone(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., nn.Module]], str]:
    """Return a function that makes a backbone of one's own importable and returns its name."""
    return lambda function: importable(monkeypatch, function)


@pytest.fixture
def build_own(own_backbone: Callable[..., str]) -> Callable[..., MultiExitNetwork]:
    """Return `build_network` for a backbone of one's own: a class or function of num_classes and in_channels."""

    def build(function: Callable[..., nn.Module], **settings: object) -> MultiExitNetwork:
        defaults = {"num_exits": 2, "num_classes": 10, "input_size": 64, "head": "msdnet"}
        return build_network(own_backbone(function), allowed=(MODULE,), **{**defaults, **settings})  # type: ignore[arg-type]

    return build


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> MultiExitNetwork:
    """Two early exits and the last one, 10 classes, grey images of 64 px; its BatchNorm has seen data."""
    return make_tiny_network(monkeypatch)


@pytest.fixture
def tiny_cnn() -> type[TinyCNN]:
    return TinyCNN


@pytest.fixture
def one_sentence() -> Callable[[object], str]:
    """Return a function that takes a caught error and checks that its text is one sentence for a person."""

    def check(caught: object) -> str:
        text = str(caught.value)  # type: ignore[attr-defined]
        assert "\n" not in text
        assert text.endswith(".")
        assert len(text) > 30
        return text

    return check
