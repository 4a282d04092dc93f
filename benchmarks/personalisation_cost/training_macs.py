"""The multiply-adds that training takes, per sample-pass: what a plan's time is compared with."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from persephonee.clients.personalisation.training.linear_fit import STEPS
from persephonee.multi_exit.network import MultiExitNetwork


def head_training_macs(head: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the MACs of a forward and a backward pass of one sample through a head, with cached maps [C, H, W].

    No gradient flows into the maps. torch.utils.flop_counter counts two operations per multiply-add; heads have no
    depthwise convolutions, whose backward pass it counts too high.
    """
    model = copy.deepcopy(head).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter:
        # on the meta device nothing is computed
        model(torch.empty(1, *shape, device="meta")).sum().backward()
    return int(counter.get_total_flops()) // 2


def exits_training_macs(network: MultiExitNetwork, exits: Sequence[int]) -> int:
    """Return the MACs of a sample-pass that trains these exits on cached maps."""
    return sum(head_training_macs(network.heads[i], network.feature_shapes[i]) for i in exits)


def backbone_macs(network: MultiExitNetwork, exits: Sequence[int]) -> int:
    """Return the MACs of one sample's way through the frozen backbone, up to the last of these exits."""
    return network.costs.exit_costs[max(exits)].macs


def fast_macs(network: MultiExitNetwork, exits: Sequence[int], count: int) -> int:
    """Return the MACs of solving for these exits' classifiers with `count` samples, their maps being there.

    Each head runs once. Then, per exit with an embedding of D numbers and K classes: the products of all pairs of
    samples, the inverse of a matrix of that size, and two products with it in every step.
    """
    total = 0
    for i in exits:
        taken = cast(nn.Linear, network.heads[i].classifier).in_features + 1
        predictions = 2 * count * taken * network.num_classes
        steps = STEPS * 2 * count**2 * network.num_classes
        total += count * network.costs.exit_costs[i].head_macs + count**2 * taken + count**3 + predictions + steps
    return total


def whole_training_macs(network: MultiExitNetwork) -> int:
    """Return the MACs of a sample-pass that trains the whole original network: the backward pass counts twice."""
    return 3 * network.costs.original_macs
