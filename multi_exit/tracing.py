"""Tracing a CNN with torch.fx into a graph without in-place operations, and measuring every node once."""

import contextlib
import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from persephonee.multi_exit.errors import BackboneError, reason_of
from persephonee.multi_exit.shape_tracer import Tracer, trace_around
from persephonee.multi_exit.stems import InputNormalisation

KEPT_WHOLE = "kept whole"
"""The key in a graph module's `meta` of the classes of modules that could not be traced through, with the reasons."""


def trace(
    model: nn.Module,
    name: str,
    shape: tuple[int, int, int],
    normalisation: InputNormalisation | None,
    *,
    with_shapes: bool = False,
) -> fx.GraphModule:
    """Return `model` as a graph module whose operations never change a tensor that an earlier node returned.

    A cached feature would otherwise be changed by the in-place ReLU that follows the cut.

    Args:
        model: in eval() mode.
        name: of the model, for errors.
        shape: (C, H, W) of an image behind the normalisation.
        normalisation: put before the model; None for none.
        with_shapes: make every shape a constant, also where torch.fx alone can trace the model.

    Raises:
        BackboneError: torch.fx cannot trace the model.
    """
    graph, whole = _graph(model, name, shape, with_shapes)
    traced = fx.GraphModule(model, graph)
    _remove_in_place_operations(traced, (torch.jit.ScriptModule, *whole))
    if normalisation is not None:
        traced.add_submodule("input_normalisation", normalisation)
        image = next(node for node in traced.graph.nodes if node.op == "placeholder")
        with traced.graph.inserting_after(image):
            normalised = traced.graph.call_module("input_normalisation", (image,))
        image.replace_all_uses_with(normalised, delete_user_cb=lambda user: user is not normalised)
    traced.recompile()
    traced.meta[KEPT_WHOLE] = {kind.__name__: reason_of(reason) for kind, reason in whole.items()}
    return traced.eval()


def _graph(
    model: nn.Module, name: str, shape: tuple[int, int, int], with_shapes: bool
) -> tuple[fx.Graph, dict[type[nn.Module], Exception]]:
    if not with_shapes:
        # torch.fx runs the model's own code, which may raise anything
        with contextlib.suppress(Exception):
            return Tracer().trace(model), {}
    try:
        # second, since a network that needs no shapes keeps the names of nodes that saved models know
        return trace_around(model, shape)
    except BackboneError as error:
        raise BackboneError(f"{name} cannot be cut: {error}") from None
    except Exception as error:
        raise BackboneError(
            f"torch.fx cannot trace {name} ({reason_of(error)}): use a CNN whose forward() does not decide by what the "
            "images show or how many there are."
        ) from None


def _remove_in_place_operations(traced: fx.GraphModule, whole: tuple[type[nn.Module], ...]) -> None:
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if _make_out_of_place(traced, node):
            changed = node.all_input_nodes[0]
            # who reads the changed tensor later means the result, as where a pre-activation feeds the shortcut too
            for user in [user for user in changed.users if position[user] > position[node]]:
                user.replace_input_with(changed, node)
        if node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), whole):
            # what happens inside is not seen and may happen in place, so that it gets a copy to work on; who reads its
            # input later means what it left there
            for given in list(node.all_input_nodes):
                with traced.graph.inserting_before(node):
                    copied = traced.graph.call_function(_copied, (given,))
                for user in [user for user in given.users if position.get(user, -1) >= position[node]]:
                    user.replace_input_with(given, copied)
    for module in traced.modules():
        if not isinstance(module, torch.jit.ScriptModule) and getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


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


def _copy_on(device: str, traced: fx.GraphModule, name: str) -> nn.Module:
    try:
        return copy.deepcopy(detached(traced)).to(device)
    except Exception as error:  # a module may refuse to be copied in its own words
        raise BackboneError(
            f"{name} cannot be copied ({reason_of(error)}): use a CNN of torch's own layers, none of them compiled."
        ) from None


class Measurement(fx.Interpreter):
    """One pass over the graph: the output of each node, and the MACs spent up to it.

    It runs on the meta device, where nothing is computed, or else, where forward() reads a number out of a tensor or
    makes tensors of its own, on the CPU.

    Attributes:
        outputs: what each node returned; of tensors only the shape is meant.
        macs: multiply-adds from the input up to and including each node, for one image.
    """

    def __init__(self, traced: fx.GraphModule, input_shape: tuple[int, int, int], name: str) -> None:
        super().__init__(_copy_on("meta", traced, name))
        try:
            self._pass(input_shape, "meta")
        except Exception:  # each of torch's operations has its own words for what it cannot do there
            super().__init__(_copy_on("cpu", traced, name))
            try:
                self._pass(input_shape, "cpu")
            except Exception as error:
                raise BackboneError(
                    f"the operations of {name} cannot be counted ({reason_of(error)}): use a CNN of torch's own layers."
                ) from None

    def _pass(self, input_shape: tuple[int, int, int], device: str) -> None:
        self.outputs: dict[str, Any] = {}
        self.macs: dict[str, int] = {}
        self._counter = FlopCounterMode(display=False)
        with self._counter, torch.no_grad():
            # two images: a batch of one would hide a model that mixes its batch into its shapes
            self.run(torch.zeros(2, *input_shape, device=device))

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note its output and the cumulative cost."""
        result = super().run_node(n)
        self.outputs[n.name] = result.to("meta") if isinstance(result, Tensor) else result
        # the counter counts two operations per multiply-add, here for two images
        self.macs[n.name] = self._counter.get_total_flops() // 4
        return result
