import itertools
import random

import pytest
from torch import nn
from torchvision.models import VisionTransformer

from persephonee.multi_exit.attach_points import Place, choose_places, find_places
from persephonee.multi_exit.backbones import build_backbone
from persephonee.multi_exit.errors import BackboneError, PlacementError
from persephonee.multi_exit.tracing import Measurement, trace


def places_of(model: nn.Module, name: str = "the network", px: int = 64) -> tuple[Place, ...]:
    traced = trace(model, name, None)
    return find_places(traced, Measurement(traced, (3, px, px), model, name), name)


def torchvision_places(name: str) -> tuple[Place, ...]:
    return places_of(build_backbone(name, num_classes=10, in_channels=3), name)


def made_up(costs: list[int]) -> tuple[Place, ...]:
    return tuple(Place(node=f"n{i}", at="", macs=cost, shape=(1, 1, 1)) for i, cost in enumerate(costs))


def distance(choice: tuple[Place, ...], total: int) -> float:
    return sum(abs(place.macs / total - i / (len(choice) + 1)) for i, place in enumerate(choice, start=1))


def test_placement_on_known_costs():
    places = made_up([10, 22, 35, 48, 74, 90])
    assert [place.macs for place in choose_places(places, 100, 3, "toy")] == [22, 48, 74]
    assert [place.macs for place in choose_places(places, 100, 1, "toy")] == [48]
    assert choose_places(places, 100, 6, "toy") == places


@pytest.mark.parametrize("seed", range(30))
def test_placement_is_the_nearest_of_all_increasing_choices(seed):
    randomness = random.Random(seed)
    total = 1000
    places = made_up(sorted(randomness.sample(range(1, total), 9)))
    for num_exits in (1, 3, 6, 9):
        chosen = choose_places(places, total, num_exits, "toy")
        assert list(chosen) == sorted(set(chosen), key=places.index), "not increasing"
        best = min(distance(choice, total) for choice in itertools.combinations(places, num_exits))
        assert distance(chosen, total) == pytest.approx(best, abs=1e-9)


def test_two_exits_never_share_a_place_even_where_one_is_nearest_to_both():
    places = made_up([48, 50, 52])
    assert choose_places(places, 100, 3, "toy") == places


@pytest.mark.parametrize("num_exits", [-1, 0, 4])
def test_more_exits_than_places_is_refused_and_says_how_many_there_are(num_exits, one_sentence):
    with pytest.raises(PlacementError) as caught:
        choose_places(made_up([10, 20, 30]), 100, num_exits, "toynet")
    text = one_sentence(caught)
    assert f"num_exits={num_exits}" in text
    assert "toynet has 3 places" in text


def test_inside_a_residual_block_there_is_no_place():
    places = torchvision_places("resnet18")
    # the stem, then the ends of the eight blocks; the average pooling costs no MACs, so it stands for the last block
    assert [place.at for place in places] == [
        *("maxpool", "layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3", "layer4.0", "avgpool"),
    ]


def test_inside_a_convnext_block_there_is_no_place():
    places = torchvision_places("convnext_tiny")
    assert {place.shape for place in places} == {(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2), (768, 1, 1)}
    assert not any(".block" in place.at for place in places)


def test_wide_maps_inside_an_inverted_residual_are_no_places():
    widths = {place.shape[0] for place in torchvision_places("mobilenet_v2")}
    assert widths == {32, 16, 24, 64, 96, 160, 320, 1280}


def test_no_two_places_have_the_same_cost():
    for name in ("squeezenet1_1", "densenet121", "googlenet"):
        costs = [place.macs for place in torchvision_places(name)]
        assert costs == sorted(set(costs))


def test_before_the_first_non_linearity_there_is_no_place():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 58 * 58, 2)
    )
    assert [place.node for place in places_of(model)] == ["_2", "_3"]


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
    assert [place.macs // (64 * 64 * 81) for place in places_of(LongShortcut())] == [1, 3]


def test_a_vision_transformer_has_no_places(one_sentence):
    transformer = VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    with pytest.raises(BackboneError) as caught:
        places_of(transformer, "a ViT")
    assert "a ViT has no places" in one_sentence(caught)
