import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from persephonee.multi_exit.errors import BackboneError
from persephonee.multi_exit.tracing import InputNormalisation, Measurement, trace


class PreActivation(nn.Module):
    """Its in-place activation changes what the shortcut adds: the result depends on it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.kind = kind

    def forward(self, images):
        shortcut = self.first(images)
        activated = {
            "module": lambda x: self.relu(x),
            "keyword": lambda x: functional.relu(x, inplace=True),
            "position": lambda x: functional.relu(x, True),
            "underscore": lambda x: functional.relu_(x),
            "method": lambda x: x.relu_(),
        }[self.kind](shortcut)
        return self.second(activated) + shortcut


@pytest.mark.parametrize("kind", ["module", "keyword", "position", "underscore", "method"])
def test_in_place_operations_are_replaced_and_the_result_stays(kind):
    torch.manual_seed(0)
    model = PreActivation(kind).eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(images)
        traced = trace(model, "the network", (3, 8, 8), None)
        assert torch.equal(traced(images), expected)
    outputs = []

    class Keeping(fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            outputs.append((result, result.clone()))
            return result

    Keeping(traced).run(images)
    assert all(torch.equal(output, as_it_was) for output, as_it_was in outputs)


def test_control_flow_that_depends_on_the_data_is_refused_in_one_sentence(one_sentence):
    class Depends(nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    with pytest.raises(BackboneError) as caught:
        trace(Depends(), "depends", (3, 8, 8), None)
    assert "torch.fx cannot trace depends" in one_sentence(caught)


def test_a_map_that_is_too_small_is_refused_in_one_sentence(one_sentence):
    model = nn.Sequential(nn.MaxPool2d(4), nn.MaxPool2d(4))
    with pytest.raises(BackboneError) as caught:
        Measurement(trace(model, "poolnet", (3, 8, 8), None), (3, 8, 8), "poolnet")
    assert "the operations of poolnet cannot be counted" in one_sentence(caught)


def test_measuring_moves_neither_the_weights_nor_the_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured = Measurement(trace(model, "the network", (3, 8, 8), None), (3, 8, 8), "the network")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert measured.outputs["_2"].shape == (2, 4, 6, 6)
    assert measured.macs["_2"] == 6 * 6 * 4 * 27


def test_normalisation_is_part_of_the_graph_and_has_no_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    images = torch.rand(2, 3, 8, 8)
    traced = trace(model, "the network", (3, 8, 8), InputNormalisation(mean, std))
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(traced(images), model(by_hand))
    assert traced.state_dict().keys() == model.state_dict().keys()
