"""The guard: an exit that training made significantly worse goes back to what it was (not in the paper).

Exits are compared sample by sample on the calibration set. Where a sample has a label, an exit scores 1 for it and 0
for another class. Where it has none, it scores the probability that the last exit, calibrated and under the user's
class frequencies, gives to the exit's answer: the accuracy to be expected, and whether it is right remains a matter of
chance, which the test counts in. An exit that corrects an unsure last exit is therefore not put back for differing
alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.evaluation import ExitOutputs, JudgedOutputs
from persephonee.clients.personalisation.prior import Floats
from persephonee.multi_exit.exit_weights import ExitWeights, weights_of_exit
from persephonee.multi_exit.settings import UNLABELLED

CERTAINTY = 1.645
"""Standard errors by which the mean score has to fall: 95 % of a one-sided test."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GuardedExits:
    """What the guard lets into force.

    Attributes:
        exits: weights of M exits.
        outputs: of these exits.
        rolled_back: exits that went back to the weights in force before the round.
    """

    exits: ExitWeights
    outputs: JudgedOutputs
    rolled_back: tuple[int, ...]


def guard(
    trained: ExitWeights,
    outputs_trained: JudgedOutputs,
    previous: ExitWeights,
    outputs_previous: JudgedOutputs,
    labels: NDArray[np.int64],
    expected: Floats,
) -> GuardedExits:
    """Return the trained exits, with the previous one in the place of each that got worse.

    Args:
        trained: weights of M exits as training left them; they stay as they are.
        outputs_trained: of them.
        previous: those in force before the round.
        outputs_previous: of them.
        labels: of the calibration samples, int64 [n], -1 where there is none.
        expected: what the last exit gives to each class on these samples, [n, K].
    """
    rolled_back = worse_exits(outputs_trained.calibration, outputs_previous.calibration, labels, expected)
    exits = dict(trained)
    for exit in rolled_back:
        exits.update(weights_of_exit(previous, exit))
    outputs = outputs_trained.replaced(rolled_back, outputs_previous)
    return GuardedExits(exits=exits, outputs=outputs, rolled_back=rolled_back)


def worse_exits(
    after: ExitOutputs, before: ExitOutputs, labels: NDArray[np.int64], expected: Floats
) -> tuple[int, ...]:
    """Return the early exits whose mean score fell by more than chance explains, by a paired one-sided test.

    Args:
        after: what the exits answer on the calibration samples.
        before: what they answered.
        labels: of these samples, int64 [n], -1 where there is none.
        expected: what the last exit gives to each class on these samples, [n, K].
    """
    scores_after, scores_before = _scores(after, labels, expected)[:-1], _scores(before, labels, expected)[:-1]
    changes = scores_after - scores_before
    # two answers, of which at most one is right with these probabilities: the variance of +1, -1 or 0
    is_open = (labels == UNLABELLED) & (after.predictions != before.predictions)[:-1]
    outcome = np.where(is_open, scores_after + scores_before - changes**2, 0.0)
    errors = np.sqrt((changes.var(axis=1) + outcome.mean(axis=1)) / changes.shape[1])
    return tuple(np.flatnonzero(changes.mean(axis=1) < -CERTAINTY * errors).tolist())


def _scores(outputs: ExitOutputs, labels: NDArray[np.int64], expected: Floats) -> Floats:
    """Return what each exit scores on each sample, shape [M+1, n], in [0, 1]."""
    given = labels
    chances = expected[np.arange(len(given)), outputs.predictions]
    scores: Floats = np.where(given == UNLABELLED, chances, outputs.predictions == given)
    return scores
