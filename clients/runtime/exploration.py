"""What exploration measures: the exits in use against the last exit, per sample, and what a policy would make of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.calibration import THRESHOLDS
from persephonee.clients.personalisation.policy import ExitPolicy


@dataclass(frozen=True, kw_only=True)
class Explored:
    """One explored sample; every tuple has a number per early exit in use.

    Attributes:
        losses: cross-entropy against the last exit's answer, in nats.
        confidences: top-1 softmax, in [0, 1]; 0 where the policy takes the image for unfamiliar.
        agrees: whether the exit answers what the last exit answers.
    """

    losses: tuple[float, ...]
    confidences: tuple[float, ...]
    agrees: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What the policy in force achieved, when it was chosen, on the calibration samples that judged it.

    Attributes:
        round: the round that made these exits, counted from 1.
        threshold: thr_conf.
        exits: early exits in use.
        agreement: fraction of the policy's answers equal to the last exit's, in [0, 1].
        early_fraction: fraction of the samples that left at an early exit, in [0, 1].
        losses: for each exit in use, its loss on each calibration sample, in nats.
    """

    round: int
    threshold: float
    exits: tuple[int, ...]
    agreement: float
    early_fraction: float
    losses: tuple[tuple[float, ...], ...]

    @property
    def num_samples(self) -> int:
        """How many calibration samples it was measured on."""
        return len(self.losses[0]) if self.losses else 0


def explore_logits(logits: NDArray[np.float64], unfamiliar: NDArray[np.bool_] | None = None) -> list[Explored]:
    """Compare the early exits in use with the last exit.

    Args:
        logits: logits of the E early exits in use and, at the end, of the last exit, shape [E+1, N, K].
        unfamiliar: which of the N images the policy takes for unfamiliar; None for none of them.

    Returns:
        N explored samples.
    """
    shifted = logits - logits.max(axis=2, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
    predictions = logits.argmax(axis=2)
    last = predictions[-1]
    losses = -np.take_along_axis(log_softmax, last[None, :, None], axis=2)[:-1, :, 0]
    confidences = np.exp(log_softmax.max(axis=2))[:-1]
    if unfamiliar is not None:
        confidences[:, unfamiliar] = 0
    return [
        Explored(
            losses=tuple(losses[:, i].round(5).tolist()),
            confidences=tuple(confidences[:, i].tolist()),
            agrees=tuple((predictions[:-1, i] == last[i]).tolist()),
        )
        for i in range(logits.shape[1])
    ]


def agreement_at(window: Sequence[Explored], threshold: float) -> tuple[float, float]:
    """Return how many of the policy's answers equal the last exit's, and how many leave early, both in [0, 1].

    Args:
        window: explored samples, at least 1.
        threshold: thr_conf.
    """
    num_exits = len(window[0].confidences)
    confidences = np.array([[*sample.confidences, 0.0] for sample in window]).T
    agrees = np.array([[*sample.agrees, True] for sample in window]).T
    exit_indices = ExitPolicy(threshold=threshold, exits_in_use=tuple(range(num_exits)), num_exits=num_exits).exit_of(
        confidences
    )
    return float(agrees[exit_indices, np.arange(len(window))].mean()), float((exit_indices < num_exits).mean())


def raised_threshold(window: Sequence[Explored], threshold: float, needed: float) -> float:
    """Return thr'_conf: the smallest threshold, `threshold` or above, with which the window agrees well enough.

    Args:
        window: the explored samples of late, at least 1.
        threshold: thr_conf in force; never lowered here.
        needed: agreement with the last exit that must be met, in [0, 1]; at threshold 1 all samples agree.
    """
    candidates = [threshold, *(t for t in THRESHOLDS if t > threshold)]
    return next(t for t in candidates if math.isclose(t, 1.0) or agreement_at(window, t)[0] >= needed - 1e-9)
