"""The early-exit policy: which exits are in use, and the confidence at which a sample leaves (Sec. 3.1.4)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.familiar_images import FamiliarImages


@dataclass(frozen=True, kw_only=True)
class ExitPolicy:
    """A sample takes the first exit in use whose top-1 softmax is above the threshold, and the last exit otherwise.

    An unfamiliar image takes the last exit in any case.

    Attributes:
        threshold: thr_conf, in [0, 1]; at 1 no sample leaves early.
        exits_in_use: early exits in use, increasing; empty for the original network.
        num_exits: M, early exits that the network has.
        familiar: which images are familiar; None takes any for one.
    """

    threshold: float
    exits_in_use: tuple[int, ...]
    num_exits: int
    familiar: FamiliarImages | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ClientSettingsError(f"threshold={self.threshold} is out of range: expected a number in [0, 1].")
        in_use = set(self.exits_in_use)
        if list(self.exits_in_use) != sorted(in_use) or not all(0 <= exit < self.num_exits for exit in in_use):
            raise ClientSettingsError(
                f"exits_in_use={self.exits_in_use} does not fit: expected increasing numbers from 0 to "
                f"{self.num_exits - 1}."
            )

    def to_json(self) -> dict[str, Any]:
        """Return what a store and an exported network keep of it."""
        familiar = {} if self.familiar is None else {"familiar": self.familiar.to_json()}
        return {
            "threshold": self.threshold,
            "exits_in_use": list(self.exits_in_use),
            "num_exits": self.num_exits,
            **familiar,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ExitPolicy":
        """Return the policy that a file holds; earlier versions called the exits in use `exits`, and knew no check.

        Raises:
            KeyError, TypeError, ValueError: it holds something else.
        """
        in_use = tuple(values["exits_in_use"] if "exits_in_use" in values else values["exits"])
        if not all(type(number) is int for number in (*in_use, values["num_exits"])):
            raise TypeError("the number of an exit is none")
        familiar = FamiliarImages.from_json(values["familiar"]) if "familiar" in values else None
        return cls(threshold=values["threshold"], exits_in_use=in_use, num_exits=values["num_exits"], familiar=familiar)

    def exit_of(self, confidences: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the exit that answers each sample.

        Args:
            confidences: top-1 softmax of all exits, shape [M+1, N], in [0, 1]; 0 at early exits where an image is
                unfamiliar.

        Returns:
            Exit numbers, shape [N]; M where no exit in use is confident enough, not the most confident one.
        """
        exit_indices = np.full(confidences.shape[1], self.num_exits, dtype=np.int64)
        for exit in reversed(self.exits_in_use):
            exit_indices[confidences[exit] > self.threshold] = exit
        return exit_indices
