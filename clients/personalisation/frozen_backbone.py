"""The frozen backbone as it runs fastest: BatchNorm folded into convolutions, channels last, in place (Sec. 3.1.3).

In a backbone that never moves BatchNorm is a constant of the convolution before it. The outputs are those of the
network's own stages within the rounding of float32.
"""

import copy
import operator
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from persephonee.multi_exit.network import MultiExitNetwork


class FrozenBackbone:
    """A copy of a network's backbone for inference alone.

    Attributes:
        stages: M+1 modules, chained as the network's own.
        fingerprint: the network's `backbone_fingerprint`.
    """

    def __init__(self, network: MultiExitNetwork) -> None:
        self.stages = [_folded(stage) for stage in network.stages]
        self.fingerprint = network.backbone_fingerprint

    def features(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what the M heads take, and the last exit's logits [B, K], of images [B, C, H, W] in [0, 1]."""
        maps, current = [], images.contiguous(memory_format=torch.channels_last)
        for stage in self.stages[:-1]:
            current = stage(current)
            maps.append(current)
        return maps, self.stages[-1](current)


_known: WeakKeyDictionary[MultiExitNetwork, tuple[list[tuple[int, int]], FrozenBackbone]] = WeakKeyDictionary()


def frozen_backbone(network: MultiExitNetwork) -> FrozenBackbone:
    """Return the network's frozen backbone; made once, and again where a weight or a buffer has changed since."""
    tensors = chain(network.stages.parameters(), network.stages.buffers())
    state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    if network not in _known or _known[network][0] != state:
        _known[network] = (state, FrozenBackbone(network))
    return _known[network][1]


def _folded(stage: nn.Module) -> nn.Module:
    stage = stage.eval()
    alone = fuse(stage, no_trace=True) if isinstance(stage, fx.GraphModule) else copy.deepcopy(stage)
    if isinstance(alone, fx.GraphModule):
        _activate_in_place(alone)
    return alone.requires_grad_(False).to(memory_format=torch.channels_last)


def _activate_in_place(stage: fx.GraphModule) -> None:
    """Let an activation overwrite what nobody else reads: a third of MobileNetV2's time went into new memory.

    Only what a convolution or a sum has just made; what a head takes, or a shortcut reads, stays.
    """
    called: dict[nn.Module, list[fx.Node]] = {}
    for node in stage.graph.nodes:
        if node.op == "call_module" and hasattr(stage.get_submodule(node.target), "inplace"):
            # one module may be called in several places
            called.setdefault(stage.get_submodule(node.target), []).append(node)
    for module, nodes in called.items():
        sources = [node.all_input_nodes[0] for node in nodes]
        if all(len(source.users) == 1 and _is_fresh(stage, source) for source in sources):
            module.inplace = True  # type: ignore[assignment]


def _is_fresh(stage: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(stage.get_submodule(str(node.target)), nn.Conv2d)
    return node.op == "call_function" and node.target in (operator.add, torch.add)
