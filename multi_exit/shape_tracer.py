"""Tracing with torch.fx for the forward() of everybody: what torch.fx alone refuses although it is no control flow.

`Tracer` takes optional arguments as their defaults, layers without weights that are made inside forward(), and numbers
from NumPy. `ShapeTracer` also runs two batches of images along, one image and three. What is no tensor and the same
for both, such as the number of channels, is a constant of the network; what differs depends on the batch and stays in
the graph. Shapes may therefore be compared, asserted and computed with. What item() reads out of
a tensor is never a constant: with other weights it would be another number. `trace_around` keeps the smallest module
whole that cannot be traced through.
"""

import builtins
import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from persephonee.multi_exit.errors import BackboneError
from persephonee.multi_exit.stems import InputNormalisation


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
        """Trace through what forward() makes: a layer without weights, or of the network's own, as features[:3] is."""
        if m in (self.submodule_paths or {}):
            return super().call_module(m, forward, args, kwargs)
        of_network = {id(value) for value in self.root.state_dict(keep_vars=True).values()}
        if not all(id(value) in of_network for value in m.state_dict(keep_vars=True).values()):
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

    def __init__(self, node: fx.Node, tracer: fx.Tracer, values: tuple[Any, Any], is_read: bool) -> None:
        super().__init__(node, tracer)
        self.values = values
        self.is_read = is_read
        """Whether the value was read out of a tensor, or computed from such a number."""

    def __getattr__(self, k: str) -> Any:
        if callable(getattr(self.values[0], k)):
            return super().__getattr__(k)
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def __len__(self) -> int:
        lengths = {len(value) for value in self.values}
        return lengths.pop() if len(lengths) == 1 else super().__len__()

    def __iter__(self) -> Iterator[Any]:
        """Take several outputs apart, as a function's `*x.chunk(2)` does."""
        return (self[i] for i in range(len(self)))  # type: ignore[index]


class NotTraceable(Exception):
    """A module that cannot be traced through.

    Attributes:
        kind: its class.
        reason: what torch.fx raised inside it.
    """

    def __init__(self, kind: type[nn.Module], reason: Exception) -> None:
        super().__init__(str(reason))
        self.kind = kind
        self.reason = reason


def trace_around(model: nn.Module, shape: tuple[int, int, int]) -> tuple[fx.Graph, dict[type[nn.Module], Exception]]:
    """Return the graph of a model, and the classes of modules that stay whole in it, each with the reason.

    Args:
        model: in eval() mode.
        shape: (C, H, W) of an image.

    Raises:
        BackboneError: forward() uses a layer that is no part of the network.
        Exception: what forward() of the model itself raised, which cannot be kept whole.
    """
    whole: dict[type[nn.Module], Exception] = {}
    while True:
        try:
            return ShapeTracer(shape, tuple(whole)).trace(model), whole
        except NotTraceable as found:
            if found.kind in whole:
                raise found.reason from None
            whole[found.kind] = found.reason


class ShapeTracer(Tracer):
    """Runs images along, so that shapes are numbers.

    Args:
        shape: (C, H, W) of an image.
        whole: classes of modules that are not traced through.
    """

    def __init__(self, shape: tuple[int, int, int], whole: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        randomness = torch.Generator().manual_seed(0)
        self._images = tuple(torch.rand(count, *shape, generator=randomness) for count in (1, 3))
        self._runs_along = False
        timm_layers = sys.modules.get("timm.layers")
        # what timm's authors mark as not to be traced through, such as padding that depends on the size
        of_timm = tuple(timm_layers.get_notrace_modules()) if timm_layers else ()
        self._whole = (torch.jit.ScriptModule, *of_timm, *whole)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a module."""
        with _seen_functions(self):
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether the module stays whole in the graph."""
        return isinstance(m, self._whole) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a module's call, or just run it along."""
        if self._runs_along:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except (NotTraceable, BackboneError):
            raise
        except Exception as error:  # torch.fx runs the module's own code, which may raise anything
            raise NotTraceable(type(m), error) from error

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a parameter as a traced value, or as itself to what runs along."""
        return attr_val if self._runs_along else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> Any:
        """Return the traced value of an operation, or what it is where that is a constant of the network."""
        if kind in ("call_method", "call_function") and target != "size":
            args, kwargs = self._with_own_batch_size(args, kwargs)
        values = tuple(self._run(kind, target, args, kwargs, index) for index in range(2))
        is_tensor = _holds(values[0], lambda value: isinstance(value, Tensor))
        is_read = not is_tensor and (target in _READING or _holds((args, kwargs), lambda a: _is_read(a)))
        # a device is not of the network: it may be moved
        stays = is_tensor or is_read or isinstance(values[0], torch.device)
        if not stays and values[0] == values[1]:
            return values[0]
        node = super().create_proxy(kind, target, args, kwargs, *more, **options).node
        return _ValuedProxy(node, self, values, is_read)

    def _with_own_batch_size(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Let an operation take the number of images from the tensor that it works on.

        Taken from the images at the beginning of forward() it would be a second value that every later stage needs.
        """
        counts = tuple(map(len, self._images))
        tensor = args[0] if args and isinstance(args[0], _ValuedProxy) else None
        if tensor is None or tuple(v.shape[:1] if isinstance(v, Tensor) else () for v in tensor.values) != tuple(
            (count,) for count in counts
        ):
            return args, kwargs

        def own(value: Any) -> Any:
            if not isinstance(value, _ValuedProxy) or value.is_read or not isinstance(value.values[0], int):
                return value
            is_far = value.values == counts and tensor.node not in value.node.all_input_nodes
            return self.create_proxy("call_method", "size", (tensor, 0), {}) if is_far else value

        return _map(args, own), _map(kwargs, own)

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any, index: int) -> Any:
        if kind == "placeholder":
            return self._images[index].clone()
        args, kwargs = (
            _map(a, lambda x: x.values[index] if isinstance(x, _ValuedProxy) else x) for a in (args, kwargs)
        )
        self._runs_along = True
        try:
            with torch.no_grad():
                if kind == "get_attr":
                    owner, _, name = target.rpartition(".")
                    return getattr(self.root.get_submodule(owner), name)
                if kind == "call_module":
                    return self.root.get_submodule(target)(*args, **kwargs)
                return (
                    getattr(args[0], target)(*args[1:], **kwargs) if kind == "call_method" else target(*args, **kwargs)
                )
        finally:
            self._runs_along = False


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    return fx.node.map_aggregate(value, function)


def _holds(value: Any, condition: Callable[[Any], bool]) -> bool:
    found: list[Any] = []
    _map(value, lambda x: found.append(x) if condition(x) else None)
    return bool(found)


def _is_read(value: Any) -> bool:
    return isinstance(value, _ValuedProxy) and value.is_read


_READING = {"item", "tolist", "equal", "allclose", "is_nonzero", torch.equal, torch.allclose, torch.is_nonzero}

_MAKING = ("zeros", "ones", "full", "empty", "rand", "randn", "arange", "FloatTensor")
"""Names in torch of what makes a tensor of a size, which may be the number of images."""

_length_of = len


@contextlib.contextmanager
def _seen_functions(tracer: ShapeTracer) -> Iterator[None]:
    """Record the calls that torch.fx does not see: tensors made of a traced size, compiled functions, and len()."""

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not _holds((args, kwargs), lambda a: isinstance(a, _ValuedProxy)):
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return call

    compiled = torch.jit.ScriptFunction
    call_compiled = compiled.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        def compiled_function(*args: Any, **kwargs: Any) -> Any:
            return call_compiled(self, *args, **kwargs)

        return recorded(compiled_function)(*args, **kwargs)

    def length(value: Any) -> Any:
        is_traced = isinstance(value, _ValuedProxy) and isinstance(value.values[0], Tensor)
        return value.size(0) if is_traced else _length_of(value)

    before = {name: getattr(torch, name) for name in _MAKING}
    of_variable = type(torch.autograd.Variable)
    try:
        for name, function in before.items():
            setattr(torch, name, recorded(function))
        compiled.__call__ = call  # type: ignore[method-assign]
        builtins.len = length
        # an old name for a tensor
        of_variable.__call__ = lambda _, data, *args, **kwargs: data  # type: ignore[method-assign]
        yield
    finally:
        builtins.len = _length_of
        for name, function in before.items():
            setattr(torch, name, function)
        compiled.__call__ = call_compiled  # type: ignore[method-assign]
        del of_variable.__call__
