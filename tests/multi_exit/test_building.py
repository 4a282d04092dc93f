import math

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import BackboneError, PlacementError, SettingsError

FAMILIES = [
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "densenet121"),
    *("convnext_tiny", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"),
]


def trained_torchvision_model(name: str) -> nn.Module:
    """Return a model with random weights whose BatchNorm has seen data, so that its maps do not vanish."""
    torch.manual_seed(3)
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = models.get_model(name, weights=None, num_classes=10, **extra)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_chained_stages_are_the_original_network(name, tmp_path):
    model = trained_torchvision_model(name)
    safetensors.torch.save_model(model, str(tmp_path / "weights.safetensors"))
    settings = {"num_classes": 10, "in_channels": 3, "input_size": 64, "weights": tmp_path / "weights.safetensors"}
    network = build_network(name, num_exits=6, **settings)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        assert expected.std() > 1e-3, "the outputs say nothing"
        logits = network(images)
        torch.testing.assert_close(logits[-1], expected)
        assert [tuple(x.shape) for x in logits] == [(2, 10)] * 7

        # stage by stage, as the features' cache and the engine do it: no later stage changes an earlier map
        maps, current = [], images
        for stage in network.stages[:-1]:
            current = stage(current)
            maps.append((current, current.clone()))
        network.stages[-1](current)
        assert all(torch.equal(now, then) for now, then in maps)
    assert network.feature_shapes == tuple(tuple(now.shape[1:]) for now, _ in maps)
    assert sum(p.numel() for p in network.stages.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "num_attach_points"), [("resnet18", 9), ("squeezenet1_1", 10), ("mobilenet_v2", 19)])
def test_a_network_cut_at_every_place_is_the_original_network(name, num_attach_points, tmp_path):
    model = trained_torchvision_model(name)
    safetensors.torch.save_model(model, str(tmp_path / "weights.safetensors"))
    network = build_network(
        name,
        num_exits=num_attach_points,
        num_classes=10,
        in_channels=3,
        input_size=64,
        head="pooled",
        weights=tmp_path / "weights.safetensors",
    )
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], model(images))
    with pytest.raises(PlacementError, match=f"has {num_attach_points} places"):
        build_network(name, num_exits=num_attach_points + 1, num_classes=10, in_channels=3, input_size=64)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("head", ["msdnet", "pooled"])
def test_grey_and_colour_images_of_28_px_go_through(in_channels, head):
    network = build_network("mobilenet_v2", num_exits=6, num_classes=62, in_channels=in_channels, head=head)
    assert network.spec.stem == "stride-1"
    assert network.input_shape == (in_channels, 28, 28)
    with torch.no_grad():
        logits = network(torch.rand(2, in_channels, 28, 28))
    assert [tuple(x.shape) for x in logits] == [(2, 62)] * 7
    assert all(x.isfinite().all() for x in logits)


def test_every_exit_learns_in_joint_training():
    network = build_network("mobilenet_v2", num_exits=6, num_classes=62)
    sum(logits.square().mean() for logits in network.train()(torch.rand(4, 1, 28, 28))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_large_images_keep_the_published_stem():
    network = build_network("resnet18", num_exits=2, num_classes=10, in_channels=3, input_size=64)
    assert network.spec.stem == "original"
    assert network.stages[0].conv1.stride == (2, 2)


def test_the_seed_determines_the_weights_and_nothing_else_moves(build_own, tiny_cnn):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (build_own(tiny_cnn, seed=seed).fingerprint for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_normalisation_maps_images_to_what_the_backbone_was_trained_on(build_own, tiny_cnn):
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    plain = build_own(tiny_cnn, in_channels=3)
    normalised = build_own(tiny_cnn, in_channels=3, mean=mean, std=std)
    images = torch.rand(2, 3, 64, 64)
    by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        for got, expected in zip(normalised(images), plain(by_hand), strict=True):
            torch.testing.assert_close(got, expected)
    assert normalised.state_dict().keys() == plain.state_dict().keys()
    assert normalised.costs == plain.costs


def test_a_module_that_serves_in_two_stages_stays_one_module(build_own):
    class Recurrent(nn.Module):
        def __init__(self, num_classes: int, in_channels: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
            self.again = nn.Conv2d(4, 4, 3, padding=1)
            self.scale = nn.Parameter(torch.tensor(0.5))
            self.classifier = nn.Linear(4, num_classes)

        def forward(self, images):
            features = self.first(images).relu()
            for _ in range(3):
                features = (self.again(features) * self.scale).relu()
            return self.classifier(features.mean((2, 3)))

    network = build_own(Recurrent, num_exits=2, input_size=64)
    torch.manual_seed(0)
    model = Recurrent(10, 1)
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], model(images))
    # parameters() counts each once, and so does the cost table
    assert network.costs.original_params == sum(p.numel() for p in model.parameters())


def test_timm_models_are_built_where_timm_is_installed():
    timm = pytest.importorskip("timm")
    network = build_network("timm/resnet18", num_exits=4, num_classes=10, in_channels=1, input_size=64)
    model = timm.create_model("resnet18", num_classes=10, in_chans=1).eval()
    stages = {k.split(".", 1)[1]: v for k, v in network.stages.state_dict().items()}
    model.load_state_dict(stages)
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], model(images))


@pytest.mark.parametrize("name", ["swin_t", "maxvit_t"])
def test_transformers_are_refused_in_one_sentence(name, one_sentence):
    with pytest.raises((BackboneError, PlacementError)) as caught:
        build_network(name, num_exits=6, num_classes=62, in_channels=3, input_size=64)
    assert name in one_sentence(caught)


def test_a_vision_transformer_of_the_right_size_has_no_attach_points(build_own, one_sentence):
    def vision_transformer(num_classes: int, in_channels: int) -> nn.Module:
        return models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=num_classes
        )

    with pytest.raises(BackboneError) as caught:
        build_own(vision_transformer, in_channels=3)
    assert "transformers have none" in one_sentence(caught)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_classes": 1}, "num_classes=1"),
        ({"in_channels": 2}, "in_channels=2"),
        ({"input_size": 4}, "input_size=4"),
        ({"head": "mlp"}, "head='mlp'"),
        ({"mean": (0.5,)}, "mean=(0.5,)"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "expected 1 numbers"),
        ({"mean": (0.5,), "std": (0.0,)}, "std > 0"),
        ({"mean": (0.5,), "std": (math.nan,)}, "std=(nan,)"),
    ],
)
def test_settings_out_of_their_range_are_refused_in_one_sentence(build_own, tiny_cnn, settings, said, one_sentence):
    with pytest.raises(SettingsError) as caught:
        build_own(tiny_cnn, **settings)
    assert said in one_sentence(caught)
