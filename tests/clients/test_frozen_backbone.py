import gc

import pytest
import torch
from torch import nn

from clients import frozen_backbone as module
from clients.frozen_backbone import frozen_backbone
from multi_exit.building import build_network


def give_statistics(network):
    generator = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) / 10)
            part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "densenet121"])
def test_the_frozen_backbone_answers_as_the_network_does(backbone):
    network = build_network(backbone, num_exits=3, num_classes=5, input_size=32).freeze_backbone()
    give_statistics(network)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps, logits = network.features(images)
        ours, last = frozen_backbone(network).features(images)
    for mine, theirs in zip([*ours, last], [*maps, logits], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_it_is_made_once_and_again_when_a_weight_or_a_statistic_changed(toy_network):
    first = frozen_backbone(toy_network.freeze_backbone())
    assert frozen_backbone(toy_network) is first
    assert first.fingerprint == toy_network.backbone_fingerprint
    give_statistics(toy_network)
    second = frozen_backbone(toy_network)
    assert second is not first
    assert second.fingerprint == toy_network.backbone_fingerprint != first.fingerprint


def test_it_goes_with_its_network(toy_network):
    import copy

    network = copy.deepcopy(toy_network)
    frozen_backbone(network)
    before = len(module._known)
    del network
    gc.collect()
    assert len(module._known) == before - 1
