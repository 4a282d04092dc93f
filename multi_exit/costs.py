"""What each exit costs. The unit is the MAC, one multiply-add, for one image; parameters are counted once."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ExitCost:
    """One row of the cost table.

    Attributes:
        exit: number of the exit, from 0; M is the last exit, the original classifier.
        at: the block of the backbone behind which the exit sits.
        share: the backbone's MACs up to here over all of its MACs, in (0, 1].
        macs: the backbone's MACs up to here, without any exit head.
        params: the backbone's parameters up to here, without any exit head.
        head_macs: MACs of the exit's own head; 0 for the last exit, whose classifier belongs to the backbone.
        head_params: parameters of the exit's own head.
    """

    exit: int
    at: str
    share: float
    macs: int
    params: int
    head_macs: int
    head_params: int


@dataclass(frozen=True)
class CostTable:
    """The cost of all exits, the last exit included as the last entry.

    Attributes:
        exit_costs: M+1 rows in the order of the exits.
    """

    exit_costs: tuple[ExitCost, ...]

    @property
    def original_macs(self) -> int:
        """MACs of the original network, which has no exit heads."""
        return self.exit_costs[-1].macs

    @property
    def original_params(self) -> int:
        """Parameters of the original network."""
        return self.exit_costs[-1].params

    def leaving_macs(self, kept: Sequence[int]) -> tuple[int, ...]:
        """Return what a sample costs that leaves at each of the `kept` exits, and then at the last one.

        A sample pays the backbone up to its exit and the heads of all kept exits on the way, its own included.

        Args:
            kept: numbers of the early exits in use, increasing; without the last exit.

        Returns:
            len(kept) + 1 costs in MACs.
        """
        costs, heads = [], 0
        for row in (*(self.exit_costs[i] for i in kept), self.exit_costs[-1]):
            heads += row.head_macs
            costs.append(row.macs + heads)
        return tuple(costs)

    def alone_macs(self, exit: int) -> int:
        """Return the cost of a network that has this exit only: the backbone up to it and its own head."""
        return self.exit_costs[exit].macs + self.exit_costs[exit].head_macs

    def alone_params(self, exit: int) -> int:
        """Return the parameters of a network that has this exit only."""
        return self.exit_costs[exit].params + self.exit_costs[exit].head_params


def count_macs(module: "nn.Module", shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of a forward pass for one input of `shape` (C, H, W).

    Counted by torch.utils.flop_counter, which counts two operations per multiply-add, on the meta device.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        copy.deepcopy(module).to("meta").eval()(torch.empty(1, *shape, device="meta"))
    return int(counter.get_total_flops()) // 2
