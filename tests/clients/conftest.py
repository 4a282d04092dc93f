import copy
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from persephonee.data_partitions.samples import UserSamples, to_float
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.graphs.network import GraphNetwork, load_graph_network
from persephonee.multi_exit.graphs.writing import write_graphs
from persephonee.multi_exit.losses import joint_loss
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata, save_network

MODULE = "toy_backbones_of_the_tests"
NUM_CLASSES = 4


class ToyCNN(nn.Sequential):
    """Three blocks for 16 px images, with BatchNorm, whose statistics would show a pass in train()."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

        blocks = [*block(in_channels, 8, 1), *block(8, 16, 2), *block(16, 32, 2)]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


def draw_images(labels: Tensor, generator: torch.Generator, tilt: int = 0) -> Tensor:
    """Draw a dark bar for each label, uint8 [N, 1, 16, 16]: its direction is the class, noise and `tilt` disturb it."""
    images = torch.full((len(labels), 1, 16, 16), 230.0)
    steps = torch.arange(2, 14)
    for image, label in zip(images, labels.tolist(), strict=True):
        shift = int(torch.randint(-2, 3, (1,), generator=generator)) + tilt
        across = torch.full_like(steps, 8) + shift
        rows, columns = [(across, steps), (steps, across), (steps, steps), (steps, 15 - steps)][label]
        image[0, rows.clamp(0, 15), columns.clamp(0, 15)] = 40.0
    noise = torch.randn(images.shape, generator=generator) * 45
    return (images + noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def draw_user():
    """Return a function that makes a user with n samples; `tilt` is what is peculiar about this user's hand."""

    def draw(client_id: str = "f0001_01", n: int = 120, tilt: int = 2, seed: int = 5) -> UserSamples:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % NUM_CLASSES
        return UserSamples(client_id=client_id, images=draw_images(labels, generator, tilt), labels=labels)

    return draw


@pytest.fixture
def user(draw_user) -> UserSamples:
    return draw_user()


@pytest.fixture
def split(user: UserSamples) -> SampleSplit:
    return split_samples(user, SplitSettings(), seed=0)


@pytest.fixture(scope="session")
def _trained_toy_network() -> MultiExitNetwork:
    module = types.ModuleType(MODULE)
    module.build = ToyCNN
    sys.modules[MODULE] = module
    network = build_network(
        f"{MODULE}:build",
        num_exits=2,
        num_classes=NUM_CLASSES,
        input_size=16,
        allowed=(MODULE,),
        head="pooled",
        stem="stride-1",
    )
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, NUM_CLASSES, (512,), generator=generator)
    images = to_float(draw_images(labels, generator))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    network.train()
    for epoch in range(4):
        for batch in torch.randperm(512, generator=generator).split(32):
            loss = joint_loss(network(images[batch]), labels[batch], (0.3, 0.6), epoch, 4)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


@pytest.fixture
def toy_network(_trained_toy_network: MultiExitNetwork) -> MultiExitNetwork:
    """A network with 2 early exits and 4 classes for images of 1x16x16, trained for a second; a copy for each test."""
    return copy.deepcopy(_trained_toy_network)


@pytest.fixture(scope="session")
def _written(_trained_toy_network: MultiExitNetwork, tmp_path_factory) -> Path:
    """The toy network's folder, with a calibration and with graphs."""
    folder = tmp_path_factory.mktemp("models") / "model"
    calibration = ExitCalibration(temperatures=(0.5, 1.5, 2.0), biases=((0.0,) * 4,) * 3, frequencies=(0.25,) * 4)
    save_network(_trained_toy_network, folder, ModelMetadata(calibration=calibration))
    write_graphs(_trained_toy_network, folder)
    return folder


@pytest.fixture
def graphs(_written: Path) -> GraphNetwork:
    """The toy network on the graphs that it carries."""
    return load_graph_network(_written, threads=1)[0]


@pytest.fixture
def calibrated(toy_network: MultiExitNetwork, graphs: GraphNetwork) -> MultiExitNetwork:
    """The same network on PyTorch."""
    toy_network.calibration = graphs.calibration
    return toy_network
