"""What turns an exit's logits into probabilities: a temperature and a bias per class, and the frequencies behind them.

The server fits it once, on users whom training never saw; a device needs it to find its user's own class frequencies
(Alexandari et al. 2020, arXiv 1901.06852).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from persephonee.multi_exit.errors import ModelFileError

LEAST_GAIN = 0.08
"""Nats a sample by which a user's own class frequencies have to explain the samples better than the global ones. Many
samples make sure of a slight skew whose shift moves predictions up and down alike: of 32 development users of Tiny
ImageNet with popularities of 50 classes, 3 to 6 % lost over 2 points at an exit without this bound and the mean gained
nothing; with popularities of 10 classes the median gain is 0.42."""


@dataclass(frozen=True, kw_only=True)
class ExitCalibration:
    """The probabilities of exit i are softmax(logits / temperatures[i] + biases[i]).

    Attributes:
        temperatures: M+1 numbers > 0, the last exit's last.
        biases: M+1 times K numbers, in nats.
        frequencies: K class frequencies under which the probabilities are right; positive, of sum 1.
        least_gain: nats a sample that a user's own class frequencies have to be worth, at least 0; above it held-out
            users gained by them on average.

    Raises:
        ModelFileError: a number is not finite or out of its range, or the lengths do not fit each other.
    """

    temperatures: tuple[float, ...]
    biases: tuple[tuple[float, ...], ...]
    frequencies: tuple[float, ...]
    least_gain: float = LEAST_GAIN

    def __post_init__(self) -> None:
        numbers = [
            self.least_gain,
            *self.temperatures,
            *self.frequencies,
            *(bias for exit in self.biases for bias in exit),
        ]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise _refused("a number is missing or not finite")
        if len(self.biases) != len(self.temperatures) or any(len(b) != len(self.frequencies) for b in self.biases):
            raise _refused("its lists are of different lengths")
        if not numbers or min(self.temperatures, default=0) <= 0:
            raise _refused("a temperature is not above 0")
        if self.least_gain < 0:
            raise _refused("the least gain is below 0")
        if min(self.frequencies, default=0) <= 0 or abs(math.fsum(self.frequencies) - 1) > 1e-6:
            raise _refused("the class frequencies are not positive numbers of sum 1")

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return what `dataclasses.asdict` made a dictionary of, which may have been JSON since.

        Raises:
            ModelFileError: a key is missing or unknown, or a value is of another kind.
        """
        names = {"temperatures", "biases", "frequencies"}
        # models of earlier versions know no least gain
        if not isinstance(values, dict) or values.keys() - {"least_gain"} != names:
            raise _refused(f"expected the keys {', '.join(sorted(names))}")
        if not all(_is_list(values[name]) for name in names) or not all(_is_list(bias) for bias in values["biases"]):
            raise _refused("expected lists of numbers")
        return cls(
            temperatures=tuple(values["temperatures"]),
            biases=tuple(tuple(bias) for bias in values["biases"]),
            frequencies=tuple(values["frequencies"]),
            least_gain=values.get("least_gain", LEAST_GAIN),
        )

    def require_fit(self, num_exits: int, num_classes: int) -> None:
        """Refuse the calibration of another network.

        Args:
            num_exits: M, early exits.
            num_classes: K.

        Raises:
            ModelFileError: it has another number of exits or of classes.
        """
        exits, classes = len(self.temperatures), len(self.frequencies)
        if (exits, classes) != (num_exits + 1, num_classes):
            raise _refused(f"{exits} exits and {classes} classes, expected {num_exits + 1} and {num_classes}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _refused(reason: str) -> ModelFileError:
    return ModelFileError(f"the calibration of the model's exits cannot be used ({reason}): calibrate the model again.")
