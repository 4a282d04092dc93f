"""What a CNN answers: asked once before it is cut, and compared with what the multi-exit network answers after."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from persephonee.multi_exit.errors import BackboneError, reason_of


def probe_images(shape: tuple[int, int, int]) -> Tensor:
    """Return three images [3, C, H, W] in [0, 1], always the same for a shape."""
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


def make_lazy_layers(model: nn.Module, name: str, images: Tensor) -> None:
    """Give layers such as nn.LazyLinear their sizes, in place."""
    if any(isinstance(module, LazyModuleMixin) for module in model.modules()):
        _run(model, name, images)


def ask(model: nn.Module, name: str, images: Tensor, num_classes: int | None) -> Tensor:
    """Return the logits [B, K] of a CNN, which is in eval() mode.

    Args:
        model: the CNN, with its weights.
        name: for errors.
        images: shape [B, C, H, W], as the CNN expects them.
        num_classes: K; None takes what the CNN returns.

    Raises:
        BackboneError: the CNN does not run on such images, or returns something else than logits of K classes.
    """
    odd = next((p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if odd is not None:
        raise BackboneError(f"{name} has weights of the type {odd}, and exits are float32: call .float() on it.")
    logits = _run(model, name, images)
    if not isinstance(logits, Tensor):
        kind = "dict" if isinstance(logits, dict) else type(logits).__name__
        raise BackboneError(f"{name} returns a {kind}: return the logits [B, K] alone from forward() in eval() mode.")
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] != len(images) or not logits.is_floating_point():
        raise BackboneError(
            f"{name} returns {logits.dtype} {shape} for {len(images)} images: return logits [{len(images)}, K] from "
            "forward(), as flatten(1) and a linear layer do."
        )
    if shape[1] != (num_classes or shape[1]) or shape[1] < 2:
        raise BackboneError(
            f"{name} has {shape[1]} outputs, and the data has {num_classes or 'at least 2'} classes: "
            "give its last layer an output for each class."
        )
    single = _run(model, name, images[:1])
    if tuple(single.shape) != (1, shape[1]):
        raise BackboneError(
            f"{name} returns {tuple(single.shape)} for a single image, as squeeze() does: use flatten(1) in forward()."
        )
    if not logits.isfinite().all():
        raise BackboneError(f"{name} answers with infinite or undefined numbers: train it again, or use other weights.")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones(len(images)), atol=1e-4):
        raise BackboneError(
            f"{name} returns probabilities, and confidence would be computed twice: return logits, without softmax."
        )
    return logits


_SQUASHING = {"sigmoid": "sigmoid", "hardsigmoid": "sigmoid", "tanh": "tanh", "hardtanh": "tanh", "softmax": "softmax"}


def refuse_squashed(traced: fx.GraphModule, name: str) -> None:
    """Refuse a network whose last operation keeps its answers in a short range.

    Softmax over answers in [0, 1] never exceeds 0.23 for ten classes, so that no exit would ever be confident.

    Raises:
        BackboneError: it ends in a sigmoid, tanh or softmax.
    """
    last = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    if not isinstance(last, fx.Node) or last.op not in ("call_module", "call_function", "call_method"):
        return
    module = traced.get_submodule(str(last.target)) if last.op == "call_module" else None
    operation = type(module).__name__ if module else getattr(last.target, "__name__", str(last.target))
    kind = _SQUASHING.get(operation.lower().strip("_"))
    if kind:
        raise BackboneError(
            f"{name} ends in a {kind}, so that its answers lie in a short range and no exit is ever confident: "
            f"return logits, without the {kind}, and keep it in the loss."
        )


def check_same_answers(built: nn.Module, name: str, images: Tensor, expected: Tensor) -> None:
    """Refuse a multi-exit network whose last exit does not answer as the CNN did.

    Args:
        built: its stages, chained.
        name: for errors.
        images: shape [B, C, H, W], as `built` expects them.
        expected: what `ask` returned for them.

    Raises:
        BackboneError: the logits differ by more than floating-point numbers explain.
    """
    with torch.no_grad():
        got = built(images)
    tolerance = 1e-4 * (expected - expected.mean(0)).abs().max() + 1e-6 * expected.abs().max()
    if got.shape == expected.shape and (got - expected).abs().max() <= tolerance:
        return
    with torch.no_grad():
        again = built(images)
    if not torch.equal(again, got):
        raise BackboneError(
            f"{name} answers the same images differently each time, as F.dropout(x) does without "
            "training=self.training: switch off what is random in eval() mode."
        )
    raise BackboneError(
        f"{name} answers otherwise once it is cut, since its forward() does what torch.fx cannot see, such as a test "
        "of what kind of value it was given, or a hook on the whole network: use a forward() of layers and torch "
        "functions."
    )


def _run(model: nn.Module, name: str, images: Tensor) -> Any:
    try:
        with torch.no_grad():
            return model(images)
    except Exception as error:  # the CNN's own code may raise anything
        where = f"{name} does not run on images of {'x'.join(map(str, images.shape[1:]))} px"
        # transformers check their input size first of all; no size would help them
        if any("attention" in type(m).__name__.lower() for m in model.modules()):
            raise BackboneError(f"{where}, and transformers have no places for exits: use a CNN.") from None
        raise BackboneError(
            f"{where} ({reason_of(error)}): give it images of the size and the channels that it was made for."
        ) from None
