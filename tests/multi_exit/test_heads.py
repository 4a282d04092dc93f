import sys

import pytest
import torch

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import BackboneNotAllowedError, SettingsError
from persephonee.multi_exit.heads import build_head
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from tests.tiny_cnn import NAME, SIDE, SOURCE

MAPS = [(1, 1), (1, 2), (2, 2), (3, 3), (4, 2), (4, 4), (5, 5), (7, 7), (8, 8)]


@pytest.mark.parametrize("kind", ["msdnet", "pooled"])
@pytest.mark.parametrize("size", MAPS, ids=lambda size: f"{size[0]}x{size[1]}")
def test_heads_classify_maps_of_any_size_and_learn_from_all_of_them(kind, size):
    torch.manual_seed(0)
    head = build_head(kind, (6, *size), 5, 0).train()
    features = torch.rand(4, 6, *size, requires_grad=True)
    logits = head(features)
    assert logits.shape == (4, 5)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    # up to 4x4 both poolings of the pooled head return the map itself, so their blend has nothing to learn
    idle = {"blend"} if kind == "pooled" and max(size) <= 4 else set()
    assert {name for name, p in head.named_parameters() if not p.grad.abs().sum() > 0} == idle
    assert features.grad.abs().sum(dim=(0, 1)).gt(0).all(), "a part of the map is ignored"


@pytest.mark.parametrize("size", MAPS, ids=lambda size: f"{size[0]}x{size[1]}")
def test_msdnet_head_spends_no_kernel_on_a_single_pixel(size):
    first, second = (m for m in build_head("msdnet", (6, *size), 5, 0) if isinstance(m, torch.nn.Conv2d))
    assert (first.kernel_size == (1, 1)) == (min(size) == 1)
    assert second.in_channels == second.out_channels == 128


def test_msdnet_head_on_the_map_it_was_made_for_halves_it_twice():
    head = build_head("msdnet", (16, 8, 8), 5, 0)
    sides = []
    for module in head:
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    head.eval()(torch.rand(1, 16, 8, 8))
    assert sides == [4, 2]


def test_pooled_head_blends_maximum_and_average_half_and_half_at_first():
    head = build_head("pooled", (1, 8, 8), 16, 0).requires_grad_(False)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.eye(16))
        head.classifier.bias.zero_()
    cells = torch.arange(64.0).reshape(1, 1, 8, 8)
    # the first 2x2 cell holds 0, 1, 8, 9: maximum 9, average 4.5
    assert float(head(cells)[0, 0]) == pytest.approx((9 + 4.5) / 2)
    with torch.no_grad():
        head.blend.fill_(50.0)
    assert float(head(cells)[0, 0]) == pytest.approx(9)


def test_an_unknown_head_is_refused_in_one_sentence(one_sentence):
    with pytest.raises(SettingsError) as caught:
        build_head("mlp", (1, 2, 2), 3, 0)
    assert "msdnet, pooled" in one_sentence(caught)


HEADS_OF_ONES_OWN = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(shape[0], num_classes)
    def embed(self, maps):
        return self.pool(maps).flatten(1)
    def forward(self, maps):
        return self.classifier(self.embed(maps))

class Squashed(Head):
    def forward(self, maps):
        return super().forward(maps).softmax(1)

def linear(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))
"""


@pytest.fixture
def own_heads(tmp_path, monkeypatch):
    (tmp_path / "my_heads.py").write_text(HEADS_OF_ONES_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_heads", None)


def test_a_head_of_ones_own_is_built_saved_and_loaded_where_its_module_is_allowed(own_heads, tmp_path):
    allowed = (SOURCE, "my_heads")
    settings = {"num_exits": 2, "num_classes": 2, "input_size": SIDE}
    network = build_network(NAME, head="my_heads:Head", allowed=allowed, **settings)
    assert [type(head).__name__ for head in network.heads] == ["Head", "Head"]
    save_network(network, tmp_path / "model", ModelMetadata())
    images = torch.rand(3, 1, SIDE, SIDE)
    loaded, _ = load_network(tmp_path / "model", allowed)
    assert all(torch.equal(a, b) for a, b in zip(network(images), loaded(images), strict=True))
    sys.modules.pop("my_heads")
    with pytest.raises(BackboneNotAllowedError, match="comes from 'my_heads', but only"):
        load_network(tmp_path / "model", (SOURCE,))
    assert "my_heads" not in sys.modules


@pytest.mark.parametrize("name", ["my_heads:Squashed", "my_heads:linear"])
def test_a_head_whose_classifier_does_not_end_it_is_refused(own_heads, name):
    with pytest.raises(SettingsError, match=r"a last nn\.Linear named classifier and a method embed"):
        build_head(name, (6, 4, 4), 5, 0, ("my_heads",))
