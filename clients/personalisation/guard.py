"""The guard: an exit that training made significantly worse goes back to what it was (not in the paper).

Exits are compared sample by sample on the calibration set. Where a sample has a label, an exit scores 1 for it and 0
for another class. Where it has none, it scores the probability that the last exit gives to the exit's answer: the
accuracy to be expected, and whether it is right remains a matter of chance, which the test counts in. An exit that
corrects an unsure last exit is therefore not put back for differing alone.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from persephonee.clients.personalisation.evaluation import ExitOutputs, JudgedOutputs
from persephonee.multi_exit.losses import UNLABELLED

CERTAINTY = 1.645
"""Standard errors by which the mean score has to fall: 95 % of a one-sided test."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GuardedExits:
    """What the guard lets into force.

    Attributes:
        heads: M exit heads.
        outputs: of these heads.
        rolled_back: exits that went back to the weights in force before the round.
    """

    heads: nn.ModuleList
    outputs: JudgedOutputs
    rolled_back: tuple[int, ...]


def guard(
    trained: nn.ModuleList,
    outputs_trained: JudgedOutputs,
    previous: nn.ModuleList,
    outputs_previous: JudgedOutputs,
    labels: Tensor,
) -> GuardedExits:
    """Return the trained exits, with the previous one in the place of each that got worse.

    Args:
        trained: M heads as training left them; they stay as they are.
        outputs_trained: of them.
        previous: M heads in force before the round.
        outputs_previous: of them.
        labels: of the calibration samples, int64 [n], -1 where there is none.
    """
    rolled_back = worse_exits(outputs_trained.calibration, outputs_previous.calibration, labels)
    heads = copy.deepcopy(trained)
    for exit in rolled_back:
        heads[exit].load_state_dict(previous[exit].state_dict())
    outputs = outputs_trained.replaced(rolled_back, outputs_previous)
    return GuardedExits(heads=heads, outputs=outputs, rolled_back=rolled_back)


def worse_exits(after: ExitOutputs, before: ExitOutputs, labels: Tensor) -> tuple[int, ...]:
    """Return the early exits whose mean score fell by more than chance explains, by a paired one-sided test.

    Args:
        after: what the exits answer on the calibration samples.
        before: what they answered.
        labels: of these samples, int64 [n], -1 where there is none.
    """
    scores_after, scores_before = _scores(after, labels)[:-1], _scores(before, labels)[:-1]
    changes = scores_after - scores_before
    # two answers, of which at most one is right with these probabilities: the variance of +1, -1 or 0
    is_open = (labels.numpy() == UNLABELLED) & (after.predictions != before.predictions)[:-1]
    outcome = np.where(is_open, scores_after + scores_before - changes**2, 0.0)
    errors = np.sqrt((changes.var(axis=1) + outcome.mean(axis=1)) / changes.shape[1])
    return tuple(np.flatnonzero(changes.mean(axis=1) < -CERTAINTY * errors).tolist())


def _scores(outputs: ExitOutputs, labels: Tensor) -> NDArray[np.float64]:
    """Return what each exit scores on each sample, shape [M+1, n], in [0, 1]."""
    given = labels.numpy()
    last = torch.softmax(outputs.logits[-1].double(), dim=1).numpy()
    expected = last[np.arange(len(given)), outputs.predictions]
    scores: NDArray[np.float64] = np.where(given == UNLABELLED, expected, outputs.predictions == given)
    return scores
