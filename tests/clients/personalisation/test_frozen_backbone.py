import gc

import pytest
import torch
from torch import fx, nn

from persephonee.clients.personalisation import frozen_backbone as module
from persephonee.clients.personalisation.frozen_backbone import frozen_backbone
from persephonee.multi_exit.building import build_network


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


class Shortcut(nn.Module):
    """`shared` is called where the sum is its alone, and where the convolution's output is read again."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.alone, self.shared = nn.ReLU(), nn.ReLU()

    def forward(self, images):
        maps = self.first(images)
        return self.shared(self.second(self.shared(maps)) + maps) + self.alone(self.second(maps))


def test_only_what_nobody_else_reads_is_overwritten():
    stage = fx.symbolic_trace(Shortcut().eval())
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        before = stage(images)
        ours = module._folded(stage)
        torch.testing.assert_close(ours(images), before, atol=1e-6, rtol=1e-5)
    assert ours.alone.inplace and not ours.shared.inplace
    # the network's own module is another one
    assert not stage.alone.inplace


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
