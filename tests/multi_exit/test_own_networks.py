"""Networks of one's own are built as they are, answer as before, or are refused in one sentence."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import BackboneError
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from tests.multi_exit.constructs import (
    CONSTRUCTS,
    DecidingBlock,
    NumberOutOfAParameter,
    OwnCNN,
    ParameterAndShape,
)


@pytest.mark.parametrize("side", [28, 32, 64])
@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_the_last_exit_answers_as_the_cnn_did(construct, side):
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that weight_norm is old and that lazy layers are new
        model = construct(10, 3)
        images = torch.rand(4, 3, side, side)
        with torch.no_grad():
            model.train()(images)  # BatchNorm gets statistics
            model.eval()
        network = build_network(model, num_exits=1, in_channels=3, input_size=side)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], model(images))
        torch.testing.assert_close(network(images[:1])[-1], model(images[:1]))
    assert network.spec.stem == "original"
    assert network.num_classes == 10


@pytest.mark.parametrize("construct", [NumberOutOfAParameter, ParameterAndShape, DecidingBlock])
def test_a_saved_network_answers_with_its_own_weights_and_not_with_those_it_was_traced_with(construct, tmp_path):
    model = construct(10, 3).eval()
    save_network(build_network(model, num_exits=1, in_channels=3), tmp_path, ModelMetadata())
    loaded, _ = load_network(tmp_path, backbone=construct(10, 3))
    images = torch.rand(4, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)[-1], model(images))


def test_a_network_whose_features_decide_by_what_they_see_is_told_the_line(one_sentence):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = changed(forward=lambda self, x: OwnCNN.forward(self, x if x.sum() > 0 else -x))

        def forward(self, x):
            return self.features(x)

    with pytest.raises(BackboneError) as caught:
        build_network(Whole(), num_exits=1)
    assert "could not be looked into" in one_sentence(caught)
    assert "test_own_networks.py line" in one_sentence(caught)


def test_lazy_layers_that_never_saw_an_image_get_their_sizes():
    class Lazy(OwnCNN):
        def __init__(self):
            super().__init__(10, 1)
            self.fc = nn.LazyLinear(10)

    assert build_network(Lazy(), num_exits=1).num_classes == 10


def changed(**methods):
    return type("Changed", (OwnCNN,), methods)(10, 1)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (changed(forward=lambda self, x: {"logits": OwnCNN.forward(self, x)}), "returns a dict"),
        (changed(forward=lambda self, x: (OwnCNN.forward(self, x), x)), "returns a tuple"),
        (changed(forward=lambda self, x: OwnCNN.forward(self, x).softmax(1)), "returns probabilities"),
        (changed(forward=lambda self, x: OwnCNN.forward(self, x).sigmoid()), "ends in a sigmoid"),
        (nn.Sequential(OwnCNN(10, 1), nn.Tanh()), "ends in a tanh"),
        (OwnCNN(10, 1).double(), "float64"),
        (changed(forward=lambda self, x: OwnCNN.forward(self, x).argmax(1)), "torch.int64"),
        (changed(forward=lambda self, x: OwnCNN.forward(self, x).squeeze()[..., None]), "(3, 10, 1)"),
        (changed(forward=lambda self, x: OwnCNN.forward(self, x).squeeze(0)), "a single image"),
        (changed(forward=lambda self, x: OwnCNN.forward(self, x) / 0), "infinite or undefined"),
        (changed(forward=lambda self, x: OwnCNN.forward(self, functional.dropout(x))), "differently each time"),
        (changed(forward=lambda self, x: OwnCNN.forward(self, x if x.sum() > 0 else -x)), "test_own_networks.py line"),
        (changed(block=lambda self, x: nn.Conv2d(8, 8, 1)(x)), "make it in __init__"),
        (torch.jit.trace(OwnCNN(10, 1).eval(), torch.rand(1, 1, 28, 28)), "TorchScript"),
        (OwnCNN(12, 1), "12 outputs, and the data has 10 classes"),
        (OwnCNN(10, 3), "does not run on images of 1x28x28 px"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_sentence(model, said, one_sentence):
    with pytest.raises(BackboneError) as caught:
        build_network(model, num_exits=1, num_classes=10)
    assert said in one_sentence(caught)


def test_an_error_in_the_constructor_names_its_line(own_backbone, one_sentence):
    def broken(num_classes, in_channels):
        return nn.Linear(num_classes, "many")

    with pytest.raises(BackboneError) as caught:
        build_network(own_backbone(broken), num_exits=1, num_classes=10, allowed=("own_backbones_of_the_tests",))
    assert "test_own_networks.py line" in one_sentence(caught)


def test_a_given_network_is_copied_and_comes_back_with_the_network_given_again(tmp_path, one_sentence):
    model = nn.DataParallel(OwnCNN(10, 1)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = build_network(model, num_exits=1)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    save_network(network, tmp_path, ModelMetadata())
    loaded, _ = load_network(tmp_path, backbone=OwnCNN(10, 1))
    assert loaded.fingerprint == network.fingerprint
    with pytest.raises(BackboneError) as caught:
        load_network(tmp_path)
    assert "OwnCNN" in one_sentence(caught)


def test_the_stem_of_a_network_with_weights_is_left_alone(tmp_path):
    trained = build_network("squeezenet1_1", num_exits=1, num_classes=10, input_size=64)
    state = {name.split(".", 1)[1]: tensor for name, tensor in trained.stages.state_dict().items()}
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "trained.pth")
    settings = {"num_exits": 1, "num_classes": 10, "input_size": 40}
    assert build_network("squeezenet1_1", weights=tmp_path / "trained.pth", **settings).spec.stem == "original"
    assert build_network("squeezenet1_1", **settings).spec.stem == "stride-1"
    asked = build_network("squeezenet1_1", weights=tmp_path / "trained.pth", stem="stride-1", **settings)
    assert asked.spec.stem == "stride-1"


@pytest.mark.parametrize(("side", "num_classes"), [(28, 10), (64, 62), (28, 100)])
def test_the_default_head_costs_at_most_half_of_the_network_up_to_it(side, num_classes):
    network = build_network(OwnCNN(num_classes, 1), num_exits=2, input_size=side)
    for cost in network.costs.exit_costs[:-1]:
        assert 0 < cost.head_macs <= cost.macs / 2
