"""Tracing a CNN with torch.fx into a graph without in-place operations, and measuring every node once."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from persephonee.multi_exit.errors import BackboneError, reason_of
from persephonee.multi_exit.shape_tracer import InputNormalisation, ShapeTracer, Tracer


def trace(
    model: nn.Module, name: str, shape: tuple[int, int, int], normalisation: InputNormalisation | None
) -> fx.GraphModule:
    """Return `model` as a graph module whose operations never change a tensor that an earlier node returned.

    A cached feature would otherwise be changed by the in-place ReLU that follows the cut.

    Args:
        model: in eval() mode.
        name: of the model, for errors.
        shape: (C, H, W) of an image behind the normalisation.
        normalisation: put before the model; None for none.

    Raises:
        BackboneError: torch.fx cannot trace the model.
    """
    traced = fx.GraphModule(model, _graph(model, name, shape))
    _remove_in_place_operations(traced)
    if normalisation is not None:
        traced.add_submodule("input_normalisation", normalisation)
        image = next(node for node in traced.graph.nodes if node.op == "placeholder")
        with traced.graph.inserting_after(image):
            normalised = traced.graph.call_module("input_normalisation", (image,))
        image.replace_all_uses_with(normalised, delete_user_cb=lambda user: user is not normalised)
    traced.recompile()
    return traced.eval()


def _graph(model: nn.Module, name: str, shape: tuple[int, int, int]) -> fx.Graph:
    try:
        return Tracer().trace(model)
    except Exception:  # torch.fx runs the model's own code, which may raise anything
        pass
    try:
        # second, since a network that needs no shapes keeps the names of nodes that saved models know
        return ShapeTracer(shape).trace(model)
    except BackboneError as error:
        raise BackboneError(f"{name} cannot be cut: {error}") from None
    except Exception as error:
        raise BackboneError(
            f"torch.fx cannot trace {name} ({reason_of(error)}): use a CNN whose forward() does not decide by what the "
            "images show or how many there are."
        ) from None


def _remove_in_place_operations(traced: fx.GraphModule) -> None:
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if _make_out_of_place(traced, node):
            changed = node.all_input_nodes[0]
            # who reads the changed tensor later means the result, as where a pre-activation feeds the shortcut too
            for user in [user for user in changed.users if position[user] > position[node]]:
                user.replace_input_with(changed, node)
        if node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), torch.jit.ScriptModule):
            # what a compiled block does inside cannot be changed, so it gets a copy to work on
            with traced.graph.inserting_before(node):
                node.args = tuple(traced.graph.call_method("clone", (argument,)) for argument in node.args)
    for module in traced.modules():
        if not isinstance(module, torch.jit.ScriptModule) and getattr(module, "inplace", False) is True:
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


def detached(model: nn.Module) -> nn.Module:
    """Return the module, its derived tensors cut off from their gradients, without which it cannot be copied.

    torch's older weight_norm and spectral_norm keep such a tensor, and compute it anew with each call.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(module, name, value.detach())
    return model


def _without_weights(traced: fx.GraphModule, name: str) -> nn.Module:
    """Return a copy on the meta device, where nothing is computed."""
    try:
        return copy.deepcopy(detached(traced)).to("meta")
    except Exception as error:  # a module may refuse to be copied in its own words
        raise BackboneError(
            f"{name} cannot be copied ({reason_of(error)}): use a CNN of torch's own layers, none of them compiled."
        ) from None


class Measurement(fx.Interpreter):
    """One pass over the graph on the meta device: the output of each node, and the MACs spent up to it.

    Attributes:
        outputs: what each node returned; tensors carry a shape and no data.
        macs: multiply-adds from the input up to and including each node, for one image.
    """

    def __init__(self, traced: fx.GraphModule, input_shape: tuple[int, int, int], name: str) -> None:
        super().__init__(_without_weights(traced, name))
        self.outputs: dict[str, Any] = {}
        self.macs: dict[str, int] = {}
        self._counter = FlopCounterMode(display=False)
        channels, height, width = input_shape
        try:
            with self._counter, torch.no_grad():
                # two images: a batch of one would hide a model that mixes its batch into its shapes
                self.run(torch.empty(2, channels, height, width, device="meta"))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise BackboneError(
                f"the operations of {name} cannot be counted ({reason_of(error)}): use a CNN of torch's own layers."
            ) from None

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note its output and the cumulative cost."""
        result = super().run_node(n)
        self.outputs[n.name] = result
        # the counter counts two operations per multiply-add, here for two images
        self.macs[n.name] = self._counter.get_total_flops() // 4
        return result
