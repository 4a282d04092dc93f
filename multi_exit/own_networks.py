"""Networks of one's own: made by `package.module:function`, or given as an nn.Module."""

import copy
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from persephonee.multi_exit.errors import BackboneError, reason_of
from persephonee.multi_exit.tracing import detached

GIVEN = "nn.Module:"
"""How the name of a network begins that was given as an object, and that no name can make again."""


def from_module(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Return what the function `package.module:function` makes.

    Raises:
        BackboneError: it cannot be imported or called, or returns something else than a module.
    """
    function, function_name = imported(name, "backbone"), name.split(":")[1]
    arguments = {"num_classes": num_classes, "in_channels": in_channels}
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:
        raise BackboneError(
            f"backbone {name!r} cannot be called ({error}): take the arguments num_classes and in_channels."
        ) from None
    try:
        model = function(**arguments)
    except Exception as error:
        raise BackboneError(
            f"backbone {name!r} fails when it is made ({reason_of(error)}): mend it, so that "
            f"{function_name}(num_classes={num_classes}, in_channels={in_channels}) returns a network."
        ) from None
    if not isinstance(model, nn.Module):
        raise BackboneError(f"backbone {name!r} returned {type(model).__name__}: return a torch.nn.Module.")
    return unwrapped(model, name)


def imported(name: str, what: str) -> Any:
    """Import what `package.module:function` names; the caller has asked whether the module is allowed.

    Raises:
        BackboneError: it cannot be imported.
    """
    module_name, function_name = name.split(":")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the import runs the user's own code, which may raise anything
        raise BackboneError(
            f"{what} {name!r} cannot be imported ({reason_of(error)}): check the name, the module and PYTHONPATH."
        ) from None


def given_network(model: nn.Module) -> nn.Module:
    """Return a copy of a network in memory, in eval() mode, on the CPU; the given one is left as it is.

    Raises:
        BackboneError: it cannot be cut or copied.
    """
    try:
        return copy.deepcopy(detached(model)).cpu().eval()
    except Exception as error:
        raise BackboneError(
            f"{type(model).__name__} cannot be copied ({reason_of(error)}): give a network of plain layers."
        ) from None


def unwrapped(model: nn.Module, name: str) -> nn.Module:
    """Return the network inside nn.DataParallel, DistributedDataParallel and torch.compile.

    Raises:
        BackboneError: it is TorchScript, or has no convolution.
    """
    while type(model).__name__ in ("DataParallel", "DistributedDataParallel", "OptimizedModule"):
        model = model._orig_mod if type(model).__name__ == "OptimizedModule" else model.module  # type: ignore[assignment]
    if type(model).__name__ in ("RecursiveScriptModule", "TopLevelTracedModule"):
        raise BackboneError(
            f"{name} is a TorchScript program, which cannot be cut: give the network that it was made from."
        )
    if next(convolutions(model), None) is None:
        raise BackboneError(f"{name} has no convolution: exits attach to the feature maps of a CNN.")
    return model


def convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Return the network's convolutions with their paths, in the order in which they were made."""
    return ((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
