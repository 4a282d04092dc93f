import pytest
import torch
from torch import nn

from persephonee.multi_exit.backbones import build_backbone, source_of
from persephonee.multi_exit.errors import BackboneError

MODULE = "own_backbones_of_the_tests"


def first_convolution(model: nn.Module) -> nn.Conv2d:
    return next(m for m in model.modules() if isinstance(m, nn.Conv2d))


def test_names_say_where_a_backbone_comes_from():
    assert source_of("resnet18") == "torchvision"
    assert source_of("timm/resnet18") == "timm"
    assert source_of("my_networks.small:build") == "my_networks.small"


@pytest.mark.parametrize("name", ["resnet81", "quantized_mobilenet_v2", "fcn_resnet50", "raft_small", "", "os:system;"])
def test_what_is_no_classification_model_is_refused_in_one_sentence(name, one_sentence):
    with pytest.raises(BackboneError) as caught:
        build_backbone(name, 10, 1)
    assert repr(name) in one_sentence(caught)


def test_an_own_backbone_is_built_only_where_its_module_is_allowed(own_backbone, tiny_cnn, one_sentence):
    name = own_backbone(tiny_cnn)
    assert isinstance(build_backbone(name, 10, 3, allowed=(MODULE,)), tiny_cnn)
    with pytest.raises(BackboneError) as caught:
        build_backbone(name, 10, 3)
    assert MODULE in one_sentence(caught)


def test_a_name_that_is_not_allowed_imports_nothing(monkeypatch, tmp_path):
    (tmp_path / "sends_your_files.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackboneError):
        build_backbone("sends_your_files:build", 10, 1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("allowed", [("torchvision",), ()])
def test_the_machines_owner_may_allow_less(allowed, one_sentence):
    with pytest.raises(BackboneError) as caught:
        build_backbone("timm/resnet18", 10, 1, allowed=allowed)
    assert "timm" in one_sentence(caught)


@pytest.mark.parametrize(
    "name", ["timm/hf-hub:someone/model", "timm/local-dir:/tmp", "timm/../x", "timm/", "timm:create_model"]
)
def test_a_timm_name_that_would_fetch_or_read_something_is_refused(name, one_sentence):
    with pytest.raises(BackboneError) as caught:
        build_backbone(name, 10, 1)
    one_sentence(caught)


def test_an_unknown_timm_name_is_refused_in_one_sentence(one_sentence):
    pytest.importorskip("timm")
    with pytest.raises(BackboneError) as caught:
        build_backbone("timm/resnet81", 10, 1)
    assert "resnet81" in one_sentence(caught)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda num_classes: nn.Conv2d(1, 1, 1), "in_channels"),
        (lambda num_classes, in_channels: "no module", "torch.nn.Module"),
        (lambda num_classes, in_channels: nn.Linear(2, 2), "no convolution"),
    ],
)
def test_own_functions_that_do_not_fit_are_refused_in_one_sentence(own_backbone, function, said, one_sentence):
    with pytest.raises(BackboneError) as caught:
        build_backbone(own_backbone(function), 10, 1, allowed=(MODULE,))
    assert said in one_sentence(caught)


@pytest.mark.parametrize("name", ["no_such_module_anywhere:build", f"{MODULE}:no_such_function"])
def test_own_functions_that_are_missing_are_refused_in_one_sentence(own_backbone, tiny_cnn, name, one_sentence):
    own_backbone(tiny_cnn)
    with pytest.raises(BackboneError) as caught:
        build_backbone(name, 10, 1, allowed=(name.split(":")[0],))
    assert name in one_sentence(caught)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "densenet121", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_first_convolution_takes_grey_or_colour(name, in_channels):
    model = build_backbone(name, 10, in_channels)
    assert first_convolution(model).in_channels == in_channels
    with torch.no_grad():
        assert model(torch.rand(2, in_channels, 64, 64)).shape == (2, 10)
