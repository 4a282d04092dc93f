"""Tracing a CNN with torch.fx into a graph without in-place operations, and measuring every node once."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from persephonee.multi_exit.errors import BackboneError


class InputNormalisation(nn.Module):
    """Maps images in [0, 1] to what a trained backbone expects: (x - mean) / std per channel.

    The constants are part of the network's specification, not of its weights.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images [B, C, H, W]."""
        return (images - self.mean) / self.std


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, InputNormalisation) or super().is_leaf_module(module, module_qualified_name)


def trace(model: nn.Module, name: str, normalisation: InputNormalisation | None) -> fx.GraphModule:
    """Return `model` as a graph module whose operations never change a tensor that an earlier node returned.

    A cached feature would otherwise be changed by the in-place ReLU that follows the cut.

    Raises:
        BackboneError: torch.fx cannot trace the model.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # torch.fx runs the model's own code, which may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(
            f"torch.fx cannot trace {name} ({reason}): use a CNN whose forward() has no data-dependent control flow."
        ) from None
    traced = fx.GraphModule(model, graph)
    _remove_in_place_operations(traced)
    if normalisation is not None:
        traced.add_submodule("input_normalisation", normalisation)
        image = next(node for node in graph.nodes if node.op == "placeholder")
        with graph.inserting_after(image):
            normalised = graph.call_module("input_normalisation", (image,))
        image.replace_all_uses_with(normalised, delete_user_cb=lambda user: user is not normalised)
    traced.recompile()
    return traced.eval()


def _remove_in_place_operations(traced: fx.GraphModule) -> None:
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if _make_out_of_place(traced, node):
            changed = node.all_input_nodes[0]
            # who reads the changed tensor later means the result, as where a pre-activation feeds the shortcut too
            for user in [user for user in changed.users if position[user] > position[node]]:
                user.replace_input_with(changed, node)
    for module in traced.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def _make_out_of_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Replace the operation of `node` where it changes its first argument, and return whether it does.

    Modules are left to the caller, since several nodes may call one module.
    """
    if node.op == "call_module":
        return getattr(traced.get_submodule(str(node.target)), "inplace", False) is True
    target = node.target
    if node.op == "call_method" and isinstance(target, str) and target.endswith("_") and hasattr(Tensor, target[:-1]):
        node.target = target[:-1]
    elif node.op == "call_function" and callable(target):
        node.target = _without_underscore(target) or target
        return node.target is not target or _switch_off_inplace(node, target)
    return node.target is not target


def _without_underscore(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return `torch.relu` for `torch.relu_` and the like; None for all other functions."""
    name = getattr(function, "__name__", "")
    for module in (torch, functional):
        if name.endswith("_") and getattr(module, name, None) is function and hasattr(module, name[:-1]):
            return getattr(module, name[:-1])  # type: ignore[no-any-return]
    return None


def _switch_off_inplace(node: fx.Node, function: Callable[..., Any]) -> bool:
    """Set the argument `inplace`, given by name or by position, to False, and return whether it was True."""
    try:
        bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # built-in functions have no signature, and no such argument
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


class Measurement(fx.Interpreter):
    """One pass over the graph on the meta device: the output of each node, and the MACs spent up to it.

    Attributes:
        outputs: what each node returned; tensors carry a shape and no data.
        macs: multiply-adds from the input up to and including each node, for one image.
    """

    def __init__(self, traced: fx.GraphModule, input_shape: tuple[int, int, int], model: nn.Module, name: str) -> None:
        # on the meta device nothing is computed and no weights are copied
        super().__init__(copy.deepcopy(traced).to("meta"))
        self.outputs: dict[str, Any] = {}
        self.macs: dict[str, int] = {}
        self._counter = FlopCounterMode(display=False)
        channels, height, width = input_shape
        try:
            with self._counter, torch.no_grad():
                # two images: a batch of one would hide a model that mixes its batch into its shapes
                self.run(torch.empty(2, channels, height, width, device="meta"))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            where = f"{name} does not run on images of {channels}x{height}x{width} px"
            # transformers check their input size first of all; no size would help them
            if any("attention" in type(m).__name__.lower() for m in model.modules()):
                raise BackboneError(f"{where}, and transformers have no places for exits: use a CNN.") from None
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BackboneError(f"{where} ({reason}): use a larger --input-size.") from None

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note its output and the cumulative cost."""
        result = super().run_node(n)
        self.outputs[n.name] = result
        # the counter counts two operations per multiply-add, here for two images
        self.macs[n.name] = self._counter.get_total_flops() // 4
        return result
