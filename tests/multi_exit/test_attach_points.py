import itertools
import random

import pytest
from torch import nn
from torchvision.models import VisionTransformer

from persephonee.multi_exit.attach_points import AttachPoint, choose_attach_points, find_attach_points
from persephonee.multi_exit.backbones import build_backbone
from persephonee.multi_exit.errors import BackboneError, PlacementError
from persephonee.multi_exit.tracing import Measurement, trace


def attach_points_of(model: nn.Module, name: str = "the network", px: int = 64) -> tuple[AttachPoint, ...]:
    traced = trace(model, name, (3, px, px), None)
    return find_attach_points(traced, Measurement(traced, (3, px, px), name), name)


def torchvision_attach_points(name: str) -> tuple[AttachPoint, ...]:
    return attach_points_of(build_backbone(name, num_classes=10, in_channels=3), name)


def made_up(costs: list[int]) -> tuple[AttachPoint, ...]:
    return tuple(AttachPoint(node=f"n{i}", at="", macs=cost, shape=(1, 1, 1)) for i, cost in enumerate(costs))


def distance(choice: tuple[AttachPoint, ...], total: int) -> float:
    return sum(abs(attach_point.macs / total - i / (len(choice) + 1)) for i, attach_point in enumerate(choice, start=1))


def test_placement_on_known_costs():
    attach_points = made_up([10, 22, 35, 48, 74, 90])
    assert [attach_point.macs for attach_point in choose_attach_points(attach_points, 100, 3, "toy")] == [22, 48, 74]
    assert [attach_point.macs for attach_point in choose_attach_points(attach_points, 100, 1, "toy")] == [48]
    assert choose_attach_points(attach_points, 100, 6, "toy") == attach_points


@pytest.mark.parametrize("seed", range(30))
def test_placement_is_the_nearest_of_all_increasing_choices(seed):
    randomness = random.Random(seed)
    total = 1000
    attach_points = made_up(sorted(randomness.sample(range(1, total), 9)))
    for num_exits in (1, 3, 6, 9):
        chosen = choose_attach_points(attach_points, total, num_exits, "toy")
        assert list(chosen) == sorted(set(chosen), key=attach_points.index), "not increasing"
        best = min(distance(choice, total) for choice in itertools.combinations(attach_points, num_exits))
        assert distance(chosen, total) == pytest.approx(best, abs=1e-9)


def test_two_exits_never_fraction_a_place_even_where_one_is_nearest_to_both():
    attach_points = made_up([48, 50, 52])
    assert choose_attach_points(attach_points, 100, 3, "toy") == attach_points


@pytest.mark.parametrize("num_exits", [-1, 0, 4])
def test_more_exits_than_attach_points_is_refused_and_says_how_many_there_are(num_exits, one_sentence):
    with pytest.raises(PlacementError) as caught:
        choose_attach_points(made_up([10, 20, 30]), 100, num_exits, "toynet")
    text = one_sentence(caught)
    assert f"num_exits={num_exits}" in text
    assert "toynet has 3 places" in text


def test_inside_a_residual_block_there_is_no_place():
    attach_points = torchvision_attach_points("resnet18")
    # the stem, then the ends of the eight blocks; the average pooling costs no MACs, so it stands for the last block
    assert [attach_point.at for attach_point in attach_points] == [
        *("maxpool", "layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3", "layer4.0", "avgpool"),
    ]


def test_inside_a_convnext_block_there_is_no_place():
    attach_points = torchvision_attach_points("convnext_tiny")
    assert {attach_point.shape for attach_point in attach_points} == {
        (96, 16, 16),
        (192, 8, 8),
        (384, 4, 4),
        (768, 2, 2),
        (768, 1, 1),
    }
    assert not any(".block" in attach_point.at for attach_point in attach_points)


def test_wide_maps_inside_an_inverted_residual_are_no_attach_points():
    widths = {attach_point.shape[0] for attach_point in torchvision_attach_points("mobilenet_v2")}
    assert widths == {32, 16, 24, 64, 96, 160, 320, 1280}


def test_no_two_attach_points_have_the_same_cost():
    for name in ("squeezenet1_1", "densenet121", "googlenet"):
        costs = [attach_point.macs for attach_point in torchvision_attach_points(name)]
        assert costs == sorted(set(costs))


def test_before_the_first_non_linearity_there_is_no_place():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 58 * 58, 2)
    )
    assert [attach_point.node for attach_point in attach_points_of(model)] == ["_2", "_3"]


def test_a_value_that_is_used_again_later_keeps_exits_away():
    class LongShortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.classifier = nn.Linear(3, 2)

        def forward(self, images):
            start = self.first(images).relu()
            middle = self.second(start).relu()
            return self.classifier((self.third(middle) + start).relu().mean((2, 3)))

    # behind `second` the shortcut is alive as well
    assert [attach_point.macs // (64 * 64 * 81) for attach_point in attach_points_of(LongShortcut())] == [1, 3]


def test_a_vision_transformer_has_no_attach_points(one_sentence):
    transformer = VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    with pytest.raises(BackboneError) as caught:
        attach_points_of(transformer, "a ViT")
    assert "a ViT has no places" in one_sentence(caught)
