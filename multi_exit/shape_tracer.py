"""Tracing with torch.fx for the forward() of everybody: what torch.fx alone refuses although it is no control flow.

`Tracer` takes optional arguments as their defaults, layers without weights that are made inside forward(), and numbers
from NumPy. `ShapeTracer` also runs two batches of images along, one image and three. What is no tensor and the same
for both, such as the number of channels, is a constant of the network; what differs depends on the batch and stays in
the graph. Shapes may therefore be compared, asserted and computed with.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from persephonee.multi_exit.errors import BackboneError


class InputNormalisation(nn.Module):
    """Maps images in [0, 1] to what a trained backbone expects: (x - mean) / std per channel.

    Grey images [B, 1, H, W] become colour where there are three constants. The constants are part of the network's
    specification, not of its weights.
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


class _Proxy(fx.Proxy):
    """A traced value; NumPy leaves arithmetic with it to torch.fx."""

    __array_ufunc__ = None


class Tracer(fx.Tracer):
    """torch.fx's tracer, with the habits of people who write a CNN for themselves."""

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Give forward() the images only: Python fills in the defaults of all other arguments."""
        names = list(inspect.signature(root_fn).parameters)
        image = names[1].lstrip("*") if len(names) > 1 else "images"
        return root_fn, [self.root, self.create_proxy("placeholder", image, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether the module stays whole in the graph."""
        whole = isinstance(m, InputNormalisation)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace through a layer without weights that forward() makes, and refuse one with weights."""
        if m in (self.submodule_paths or {}):
            return super().call_module(m, forward, args, kwargs)
        if m.state_dict():
            raise BackboneError(
                f"forward() uses a {type(m).__name__} that is no part of the network, so its weights are neither "
                "trained nor saved: make it in __init__, and keep several in an nn.ModuleList."
            )
        return forward(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """Take NumPy's numbers and arrays as Python's and torch's."""
        if isinstance(a, np.generic):
            a = a.item()
        return super().create_arg(torch.from_numpy(a) if isinstance(a, np.ndarray) else a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the value of a node while tracing."""
        return _Proxy(node, self)


class _ValuedProxy(_Proxy):
    """A traced value that knows what it is for one image and for three."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, values: tuple[Any, Any]) -> None:
        super().__init__(node, tracer)
        self.values = values

    def __getattr__(self, k: str) -> Any:
        if callable(getattr(self.values[0], k)):
            return super().__getattr__(k)
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def __len__(self) -> int:
        lengths = {len(value) for value in self.values}
        return lengths.pop() if len(lengths) == 1 else super().__len__()


class ShapeTracer(Tracer):
    """Runs images along, so that shapes are numbers.

    Args:
        shape: (C, H, W) of an image.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        randomness = torch.Generator().manual_seed(0)
        self._images = tuple(torch.rand(count, *shape, generator=randomness) for count in (1, 3))
        self._runs_along = False
        timm_layers = sys.modules.get("timm.layers")
        # what timm's authors mark as not to be traced through, such as padding that depends on the size
        self._whole = tuple(timm_layers.get_notrace_modules()) if timm_layers else ()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether the module stays whole in the graph."""
        return isinstance(m, (torch.jit.ScriptModule, *self._whole)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a module's call, or just run it along."""
        return forward(*args, **kwargs) if self._runs_along else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a parameter as a traced value, or as itself to what runs along."""
        return attr_val if self._runs_along else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> Any:
        """Return the traced value of an operation, or what it is where that is a constant of the network."""
        values = tuple(self._run(kind, target, args, kwargs, index) for index in range(2))
        if not _holds_tensors(values[0]) and values[0] == values[1]:
            return values[0]
        node = super().create_proxy(kind, target, args, kwargs, *more, **options).node
        return _ValuedProxy(node, self, values)

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any, index: int) -> Any:
        if kind == "placeholder":
            return self._images[index].clone()
        if kind == "get_attr":
            owner, _, name = target.rpartition(".")
            return getattr(self.root.get_submodule(owner), name)
        args, kwargs = (
            _map(a, lambda x: x.values[index] if isinstance(x, _ValuedProxy) else x) for a in (args, kwargs)
        )
        self._runs_along = True
        try:
            with torch.no_grad():
                if kind == "call_module":
                    return self.root.get_submodule(target)(*args, **kwargs)
                return (
                    getattr(args[0], target)(*args[1:], **kwargs) if kind == "call_method" else target(*args, **kwargs)
                )
        finally:
            self._runs_along = False


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    return fx.node.map_aggregate(value, function)


def _holds_tensors(value: Any) -> bool:
    found: list[Tensor] = []
    _map(value, lambda x: found.append(x) if isinstance(x, Tensor) else None)
    return bool(found)
