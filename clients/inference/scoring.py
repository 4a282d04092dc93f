"""What an engine's policy and its exits are worth on labelled samples; needs NumPy only, as the engines do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.inference.engine import Engine

BATCH = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """Right and wrong on N samples, of the E exits in use and the last exit.

    Attributes:
        exits: their numbers, increasing; the last exit's as the last entry.
        policy_right: whether the policy's prediction is right, bool [N].
        exits_right: likewise for each exit alone, bool [E, N].
        exit_indices: the exit that answered each sample, [N].
        confidences: the top-1 softmax of the exit that answered, [N], in [0, 1].
    """

    exits: tuple[int, ...]
    policy_right: NDArray[np.bool_]
    exits_right: NDArray[np.bool_]
    exit_indices: NDArray[np.int64]
    confidences: NDArray[np.float64]

    def macs(self, leaving_macs: Sequence[int]) -> NDArray[np.float64]:
        """Return what each sample cost, [N].

        Args:
            leaving_macs: of a sample that leaves at each of `exits`, as `CostTable.leaving_macs` returns them.
        """
        places = np.searchsorted(self.exits, self.exit_indices)
        return np.asarray(leaving_macs, dtype=np.float64)[places]


def score(engine: Engine, batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> Score:
    """Return what the engine answers on labelled images.

    Args:
        engine: whose policy is measured.
        batches: images, uint8 [B, C, H, W], and their classes, [B]; at least one batch.

    Raises:
        ImageError: the images are not those that the network takes.
    """
    parts = []
    for images, labels in batches:
        found = engine.explore(images)
        answers = found.predictions
        parts.append(
            Score(
                exits=found.exits,
                policy_right=answers.labels == labels,
                exits_right=found.labels == labels,
                exit_indices=answers.exit_indices,
                confidences=answers.confidences,
            )
        )
    return joined(parts)


def joined(scores: Sequence[Score]) -> Score:
    """Return several sets of samples as one."""
    return Score(
        exits=scores[0].exits,
        policy_right=np.concatenate([part.policy_right for part in scores]),
        exits_right=np.concatenate([part.exits_right for part in scores], axis=1),
        exit_indices=np.concatenate([part.exit_indices for part in scores]),
        confidences=np.concatenate([part.confidences for part in scores]),
    )
