"""The exits' weights as a flat dictionary, `heads.<exit>.<name>` to array: what is stored, shared and loaded again.

They are NumPy arrays wherever a device without PyTorch deals with them, and tensors where a network of PyTorch does.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persephonee.multi_exit.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor, nn

    AnyExitWeights = Mapping[str, Tensor] | Mapping[str, NDArray[Any]]
    """Of PyTorch or of NumPy."""

HEADS = "heads."
"""With it begin the names of exits' weights, and of no others."""
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

ExitWeights = dict[str, NDArray[Any]]


def as_arrays(weights: "AnyExitWeights") -> ExitWeights:
    """Return the weights as NumPy arrays; a tensor's memory is shared, not copied."""
    return {name: np.asarray(value) for name, value in weights.items()}


def in_order(names: Iterable[str]) -> list[str]:
    """Return the weights' names in the order of PyTorch's modules, which a file need not keep."""
    return sorted(names, key=_place)


def _place(name: str) -> tuple[tuple[tuple[int, str], ...], int, str]:
    *modules, leaf = name.split(".")
    # by their length first, numbers are in order; as an integer, one of thousands of digits would be refused
    path = tuple((len(part) if part.isdecimal() else -1, part) for part in modules)
    return path, _LEAVES.index(leaf) if leaf in _LEAVES else -1, leaf


def weights_of_exit(weights: Mapping[str, NDArray[Any]], exit: int) -> ExitWeights:
    """Return those of the weights that belong to one exit."""
    prefix = f"{HEADS}{exit}."
    return {name: value for name, value in weights.items() if name.startswith(prefix)}


def classifier_names(weights: Mapping[str, NDArray[Any]], exit: int) -> tuple[str, str]:
    """Return what the weight [K, D] and the bias [K] of an exit's linear classifier are called.

    Raises:
        ModelFileError: the exit has no classifier, or several.
    """
    found = [name for name, value in weights_of_exit(weights, exit).items() if value.ndim == 2]
    bias = found[0].removesuffix("weight") + "bias" if found else ""
    if len(found) != 1 or bias not in weights or weights[bias].shape != weights[found[0]].shape[:1]:
        raise ModelFileError(f"exit {exit} has no linear classifier at its end: use a head of this project.")
    return found[0], bias


def classifiers_of(weights: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], ...]:
    """Return each exit's classifier with its bias as the last column, [K, D_i + 1]."""
    names = [classifier_names(weights, exit) for exit in range(num_exits_of(weights))]
    return tuple(np.column_stack([weights[weight], weights[bias]]) for weight, bias in names)


def with_classifiers(weights: Mapping[str, NDArray[Any]], matrices: Sequence[NDArray[np.float32]]) -> ExitWeights:
    """Return the weights with other classifiers, as `classifiers_of` returns them."""
    changed = dict(weights)
    for exit, matrix in enumerate(matrices):
        weight, bias = classifier_names(weights, exit)
        changed[weight], changed[bias] = np.ascontiguousarray(matrix[:, :-1]), np.ascontiguousarray(matrix[:, -1])
    return changed


def classifiers_on(own: Mapping[str, NDArray[Any]], weights: Mapping[str, NDArray[Any]]) -> ExitWeights | None:
    """Return the classifiers alone of weights that are `own` in all else, bit for bit.

    That is what the fast schedule and the user's class frequencies leave. None where more differs, and where an exit
    has no classifier that could be told from the rest.
    """
    try:
        names = _all_classifier_names(own)
    except ModelFileError:
        return None
    if not names or own.keys() != weights.keys():
        return None
    if not all(name in names or _is_same(own[name], weights[name]) for name in own):
        return None
    return {name: weights[name] for name in own if name in names}


def on_these_heads(own: Mapping[str, NDArray[Any]], classifiers: Mapping[str, NDArray[Any]]) -> ExitWeights:
    """Return the weights that `classifiers_on` took the classifiers of.

    Raises:
        ModelFileError: these are no classifiers of the exits of `own`, or not of all of them.
    """
    wrong = sorted(_all_classifier_names(own) ^ classifiers.keys())
    if wrong:
        raise ModelFileError(f"the classifiers do not fit the exits, first at {wrong[0][:80]!r}.")
    return {name: classifiers.get(name, value) for name, value in own.items()}


def heads_fingerprint(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 over all tensors of the exits but their classifiers: what these were fitted on.

    Raises:
        ModelFileError: an exit has no classifier, or several.
    """
    digest = hashlib.sha256()
    for name in sorted(weights.keys() - _all_classifier_names(weights)):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype} {weights[name].shape}".encode())
        digest.update(array.reshape(-1).data)
    return digest.hexdigest()


def _all_classifier_names(weights: Mapping[str, NDArray[Any]]) -> set[str]:
    return {name for exit in range(num_exits_of(weights)) for name in classifier_names(weights, exit)}


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one is other:
        return True
    # as integers: 0 and -0 are equal, and the same number to a file they are not
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def num_exits_of(weights: Iterable[str]) -> int:
    """Return M, the number of exits whose weights these are."""
    return 1 + max((int(name.split(".")[1]) for name in weights), default=-1)


def require_fit(own: "Mapping[str, Any]", weights: "Mapping[str, Any]") -> None:
    """Refuse weights of other exits than one's own.

    Raises:
        ModelFileError: one is missing, unknown, or of another shape.
    """
    wrong = sorted(own.keys() ^ weights.keys()) or [
        name for name in own if tuple(own[name].shape) != tuple(weights[name].shape)
    ]
    if wrong:
        raise ModelFileError(
            f"the exits' weights do not fit this network, first at {wrong[0]!r}: use exits of the same model."
        )


def exit_weights_of(heads: "nn.ModuleList") -> "dict[str, Tensor]":
    """Return copies of all tensors of the heads, buffers included, on the CPU: they are stored, sent, merged."""
    return {f"{HEADS}{name}": t.detach().to("cpu", copy=True) for name, t in heads.state_dict().items()}


def load_exit_weights(heads: "nn.ModuleList", weights: "AnyExitWeights") -> None:
    """Load tensors that `exit_weights_of` returned, or their arrays.

    Raises:
        ModelFileError: a tensor is missing, unknown, or of another shape.
    """
    import torch

    own = {f"{HEADS}{name}": tensor for name, tensor in heads.state_dict().items()}
    require_fit(own, weights)
    heads.load_state_dict({name.removeprefix(HEADS): torch.as_tensor(value) for name, value in weights.items()})
