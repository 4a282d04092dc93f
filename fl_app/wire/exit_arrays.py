"""Exits on the wire: which arrays may travel, and how tensors become arrays and arrays tensors.

An exit is one or two flat arrays, so that a message holds few objects and a check is exact. Their names say what part
of the exit they are, and a run's settings say which part travels:

    <exit>.classifier    the weight and the bias of the last layer, where the clients change nothing else: with
                         schedule=fast or scheme=prior
    <exit>.parameters    elsewhere: all weights of the head, float, in the order of its state_dict
    <exit>.statistics    and BatchNorm's running means and variances, where the head has any

The statistics travel because they are part of what the exit computes: merged weights with somebody else's statistics
answer at random. They are means over one user's activations, and are covered by the same permission, clipping and
noise. Integer buffers (num_batches_tracked) do not travel: nothing computes with them, and an average of them is no
integer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire.foreign_bytes import read_array, refusing
from persephonee.fl_app.wire.limits import MAX_VALUE
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays, classifier_names, weights_of_exit

if TYPE_CHECKING:
    from torch import Tensor

    from persephonee.multi_exit.graphs.network import GraphNetwork
    from persephonee.multi_exit.network import MultiExitNetwork

CLASSIFIER, PARAMETERS, STATISTICS = "classifier", "parameters", "statistics"
_STATISTICS = (".running_mean", ".running_var")
ExitArrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ExitLayout:
    """The arrays of a network's exits.

    Attributes:
        tensors: for each array its tensors, by the names of `MultiExitNetwork.exit_state`, and their shapes.
        variances: the tensors that may not be negative.
        dtype: in which they travel, float32 or float16.
        classifiers_alone: whether whole exits travel, or their classifiers.
    """

    tensors: Mapping[str, tuple[tuple[str, tuple[int, ...]], ...]]
    variances: frozenset[str]
    dtype: str
    classifiers_alone: bool = False

    @classmethod
    def of(
        cls, network: "MultiExitNetwork | GraphNetwork", dtype: str, *, classifiers_alone: bool = False
    ) -> "ExitLayout":
        """Return the layout of a network's exits, or of their classifiers."""
        tensors: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {}
        weights = as_arrays(network.exit_state())
        for number in range(network.num_exits):
            parts = _classifier(weights, number) if classifiers_alone else _whole_exit(weights, number)
            for part, names in parts.items():
                if names:
                    tensors[f"{number}.{part}"] = tuple((name, weights[name].shape) for name in names)
        variances = frozenset(name for name in weights if name.endswith(".running_var"))
        return cls(tensors=tensors, variances=variances, dtype=dtype, classifiers_alone=classifiers_alone)

    def size(self, name: str) -> int:
        """Return the number of values in an array."""
        return sum(prod(shape) for _, shape in self.tensors[name])

    def arrays(self, state: "Mapping[str, Tensor] | Mapping[str, NDArray[Any]]") -> ExitArrays:
        """Return the arrays of all exits, from weights named as `exit_state` names them."""
        return {
            name: np.concatenate([np.asarray(state[one], dtype=np.float32).reshape(-1) for one, _ in tensors])
            for name, tensors in self.tensors.items()
        }

    def state(
        self,
        arrays: Mapping[str, NDArray[np.float32]],
        base: "Mapping[str, Tensor] | Mapping[str, NDArray[Any]]",
    ) -> ExitWeights:
        """Return an exit state: what the arrays hold, and all else as it is in `base`."""
        state = {name: np.array(value) for name, value in base.items()}
        for name, array in arrays.items():
            ends = np.cumsum([prod(shape) for _, shape in self.tensors[name]])[:-1]
            for (one, shape), piece in zip(self.tensors[name], np.split(array.astype(np.float32), ends), strict=True):
                # noise, or a strategy with momentum, may have gone below
                state[one] = (piece.clip(min=0) if one in self.variances else piece.copy()).reshape(shape)
        return state

    def names(self, exits: Collection[int]) -> tuple[str, ...]:
        """Return the names of the arrays of these exits."""
        return tuple(name for name in self.tensors if exit_of(name) in exits)

    def to_record(self, arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
        """Return arrays as they travel.

        Raises:
            WireError: a value is not finite, is larger than an exit's may be, or does not fit into the type in which
                it is to travel.
        """
        with np.errstate(over="ignore"):
            cast = {name: array.astype(self.dtype) for name, array in arrays.items()}
        for name, array in cast.items():
            if not np.isfinite(array).all():
                raise WireError(f"exits/{name}: a value is not finite as {self.dtype}.")
            _check_size(name, arrays[name])
        return ArrayRecord({name: Array(array) for name, array in cast.items()})

    def from_record(self, record: object) -> ExitArrays:
        """Return the arrays in a record that arrived, or is about to leave.

        Raises:
            WireError: it holds anything but whole exits of this network, finite, in the right type and size, and with
                values that an exit may have.
        """
        if not isinstance(record, ArrayRecord):
            raise WireError(f"exits: expected an ArrayRecord, got {type(record).__name__}.")
        unknown = sorted(set(record) - self.tensors.keys())
        if unknown:
            whole = "classifiers alone do" if self.classifiers_alone else "whole exits do, and classifiers alone"
            raise WireError(f"exits/{unknown[0][:40]} may not travel: {whole} with schedule=fast or scheme=prior.")
        missing = sorted(set(self.names({exit_of(name) for name in record})) - set(record))
        if missing or not record:
            raise WireError(f"exits: {missing[0] if missing else 'an exit'} is missing.")
        with refusing("exits"):
            return {name: self._array(name, record[name]) for name in self.tensors if name in record}

    def _array(self, name: str, array: Array) -> NDArray[np.float32]:
        values = read_array(array, self.dtype, (self.size(name),), f"exits/{name}")
        whole: NDArray[np.float32] = values.astype(np.float32)
        if not np.isfinite(whole).all():
            raise WireError(f"exits/{name}: a value is not finite.")
        _check_size(name, whole)
        return whole


def _classifier(weights: ExitWeights, exit: int) -> dict[str, Sequence[str]]:
    return {CLASSIFIER: classifier_names(weights, exit)}


def _whole_exit(weights: ExitWeights, exit: int) -> dict[str, Sequence[str]]:
    names = [name for name, array in weights_of_exit(weights, exit).items() if array.dtype.kind == "f"]
    return {
        PARAMETERS: [name for name in names if not name.endswith(_STATISTICS)],
        STATISTICS: [name for name in names if name.endswith(_STATISTICS)],
    }


def _check_size(name: str, values: NDArray[np.float32]) -> None:
    if np.abs(values).max(initial=0.0) > MAX_VALUE:
        raise WireError(f"exits/{name}: a value is larger than {MAX_VALUE:g}, which no exit's is.")


def exit_of(name: str) -> int:
    """Return the exit that an array belongs to; -1 where the name says none."""
    number = name.split(".")[0]
    return int(number) if number.isascii() and number.isdigit() else -1
