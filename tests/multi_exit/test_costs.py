import pytest
import torch
from torch import nn

from persephonee.multi_exit.backbones import build_backbone
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.costs import CostTable, ExitCost, count_macs

# multiply-adds of TinyCNN for one grey image of 64 px: output positions x outputs x inputs per output x kernel
FIRST = 64 * 64 * 4 * 1 * 9
SECOND = 32 * 32 * 8 * 4 * 9
DEPTHWISE = 32 * 32 * 8 * 1 * 9
CLASSIFIER = 8 * 10


def macs_by_hooks(model: nn.Module, images: torch.Tensor) -> int:
    """Count multiply-adds of convolutions and linear layers by their textbook formulas, for one image."""
    counted = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            counted.append(output[0].numel() * module.in_channels // module.groups * kernel)
        else:
            counted.append(output[0].numel() * module.in_features)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(images)
    return sum(counted)


def test_macs_of_a_small_cnn_are_those_worked_out_by_hand(tiny_network):
    assert [row.macs for row in tiny_network.costs.exit_costs] == [
        FIRST,
        FIRST + SECOND,
        FIRST + SECOND + DEPTHWISE + CLASSIFIER,
    ]
    assert tiny_network.costs.original_macs == FIRST + SECOND + DEPTHWISE + CLASSIFIER
    assert tiny_network.costs.exit_costs[0].share == pytest.approx(FIRST / tiny_network.costs.original_macs)
    assert tiny_network.costs.exit_costs[-1].share == 1


def test_params_of_a_small_cnn_are_those_worked_out_by_hand(tiny_network):
    first, norm, second, depthwise, classifier = 4 * 9, 2 * 4, 8 * 4 * 9 + 8, 8 * 9 + 8, 8 * 10 + 10
    assert [row.params for row in tiny_network.costs.exit_costs] == [
        first + norm,
        first + norm + second,
        first + norm + second + depthwise + classifier,
    ]


def test_head_costs_of_a_small_cnn_are_those_worked_out_by_hand(tiny_network):
    # maps [4, 64, 64] and [8, 32, 32]: two convolutions that halve them, then 128 x 10
    macs = [
        32 * 32 * 128 * 4 * 9 + 16 * 16 * 128 * 128 * 9 + 128 * 10,
        16 * 16 * 128 * 8 * 9 + 8 * 8 * 128 * 128 * 9 + 128 * 10,
    ]
    params = [128 * c * 9 + 2 * 128 + 128 * 128 * 9 + 2 * 128 + 128 * 10 + 10 for c in (4, 8)]
    assert [row.head_macs for row in tiny_network.costs.exit_costs] == [*macs, 0]
    assert [row.head_params for row in tiny_network.costs.exit_costs] == [*params, 0]


def test_a_pooled_head_costs_its_classifier_only(build_own, tiny_cnn):
    costs = build_own(tiny_cnn, head="pooled").costs
    assert costs.exit_costs[1].head_macs == 8 * 4 * 4 * 10
    assert costs.exit_costs[1].head_params == 8 * 4 * 4 * 10 + 10 + 1


def test_resnet50_at_224_px_has_the_macs_and_the_attach_points_of_the_literature():
    costs = build_network("resnet50", num_exits=6, num_classes=1000, in_channels=3, input_size=224).costs
    assert round(costs.original_macs / 1e6) == 4089
    assert [round(row.share, 3) for row in costs.exit_costs] == [0.139, 0.283, 0.444, 0.588, 0.695, 0.893, 1.0]
    # layer2.3 is the last block of layer2, so the exit sits behind layer2 as a whole
    assert [row.at for row in costs.exit_costs] == [
        *("layer1.1", "layer2.0", "layer2", "layer3.1", "layer3.3", "layer4.0", "output"),
    ]


def test_mobilenet_v2_at_28_px_has_the_macs_and_the_attach_points_of_the_paper():
    costs = build_network("mobilenet_v2", num_exits=6, num_classes=62, head="msdnet").costs
    assert 21.8e6 <= costs.original_macs <= 22.3e6
    assert [row.at for row in costs.exit_costs[:2]] == ["features.2", "features.5"]
    assert costs.exit_costs[2].at in ("features.9", "features.10")
    assert [row.at for row in costs.exit_costs[3:]] == ["features.12", "features.14", "features.16", "output"]
    # on FEMNIST the first exit's head costs more than the backbone up to it
    assert costs.exit_costs[0].macs == pytest.approx(2.7e6, rel=0.02)
    assert costs.exit_costs[0].head_macs == pytest.approx(3.7e6, rel=0.02)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_macs_are_those_of_the_textbook_formulas(name):
    costs = build_network(name, num_exits=1, num_classes=10, in_channels=3, input_size=64).costs
    model = build_backbone(name, num_classes=10, in_channels=3)
    assert costs.original_macs == macs_by_hooks(model, torch.rand(1, 3, 64, 64))
    assert costs.original_params == sum(p.numel() for p in model.parameters())


def row(exit: int, macs: int, head_macs: int) -> ExitCost:
    return ExitCost(exit=exit, at="", share=macs / 100, macs=macs, params=7, head_macs=head_macs, head_params=5)


def test_leaving_pays_the_heads_of_the_kept_exits_on_the_way_and_no_others():
    table = CostTable((row(0, 10, 1), row(1, 30, 2), row(2, 60, 4), row(3, 100, 0)))
    assert table.leaving_macs([0, 1, 2]) == (11, 33, 67, 107)
    assert table.leaving_macs([0, 2]) == (11, 65, 105)
    assert table.leaving_macs([]) == (100,)


def test_an_exit_alone_costs_the_backbone_up_to_it_and_its_own_head():
    table = CostTable((row(0, 10, 1), row(1, 30, 2), row(2, 100, 0)))
    assert table.alone_macs(1) == 32
    assert table.alone_params(1) == 12
    assert table.alone_macs(2) == table.original_macs == 100


def test_counting_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).train()
    assert count_macs(module, (2, 5, 5)) == 3 * 3 * 3 * 2 * 9
    assert module.training
    assert module[0].weight.device.type == "cpu"
    assert int(module[1].num_batches_tracked) == 0
