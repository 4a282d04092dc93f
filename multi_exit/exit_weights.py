"""The exits' weights as a flat dictionary, `heads.<exit>.<name>` to tensor: what is stored, shared and loaded again."""

from collections.abc import Mapping

from torch import Tensor, nn

from persephonee.multi_exit.errors import ModelFileError

_PREFIX = "heads."


def exit_weight_name(exit: int, name: str) -> str:
    """Return what the dictionary calls the tensor `name` of the head of an exit."""
    return f"{_PREFIX}{exit}.{name}"


def exit_weights_of(heads: nn.ModuleList) -> dict[str, Tensor]:
    """Return copies of all tensors of the heads, buffers included, on the CPU: they are stored, sent, merged."""
    return {f"{_PREFIX}{name}": t.detach().to("cpu", copy=True) for name, t in heads.state_dict().items()}


def load_exit_weights(heads: nn.ModuleList, weights: Mapping[str, Tensor]) -> None:
    """Load tensors that `exit_weights_of` returned.

    Raises:
        ModelFileError: a tensor is missing, unknown, or of another shape.
    """
    own = {f"{_PREFIX}{name}": tensor for name, tensor in heads.state_dict().items()}
    wrong = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
    if wrong:
        raise ModelFileError(
            f"the exits' weights do not fit this network, first at {wrong[0]!r}: use exits of the same model."
        )
    heads.load_state_dict({name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()})
