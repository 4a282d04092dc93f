"""The early-exit policy: which exits are in use, and the confidence at which a sample leaves (Sec. 3.1.4)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError


@dataclass(frozen=True, kw_only=True)
class ExitPolicy:
    """A sample takes the first exit in use whose top-1 softmax is above the threshold, and the last exit otherwise.

    Attributes:
        threshold: thr_conf, in [0, 1]; at 1 no sample leaves early.
        exits: early exits in use, increasing; empty for the original network.
        num_exits: M, early exits that the network has.
    """

    threshold: float
    exits: tuple[int, ...]
    num_exits: int

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ClientSettingsError(f"threshold={self.threshold} is out of range: expected a number in [0, 1].")
        if list(self.exits) != sorted(set(self.exits)) or not set(self.exits) <= set(range(self.num_exits)):
            raise ClientSettingsError(
                f"exits={self.exits} do not fit: expected increasing numbers from 0 to {self.num_exits - 1}."
            )

    def exit_of(self, confidences: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the exit that answers each sample.

        Args:
            confidences: top-1 softmax of all exits, shape [M+1, N], in [0, 1].

        Returns:
            Exit numbers, shape [N]; M where no exit in use is confident enough, not the most confident one.
        """
        exit_indices = np.full(confidences.shape[1], self.num_exits, dtype=np.int64)
        for exit in reversed(self.exits):
            exit_indices[confidences[exit] > self.threshold] = exit
        return exit_indices
