"""The guard: an exit that training made worse on the user's calibration samples goes back (not in the paper)."""

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from persephonee.clients.personalisation.evaluation import ExitOutputs, JudgedOutputs


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
    reference: Tensor,
) -> GuardedExits:
    """Return the trained exits, with the previous one in the place of each that got worse.

    Args:
        trained: M heads as training left them; they stay as they are.
        outputs_trained: of them.
        previous: M heads in force before the round.
        outputs_previous: of them.
        reference: classes of the calibration samples, int64 [n].
    """
    rolled_back = worse_exits(outputs_trained.calibration, outputs_previous.calibration, reference)
    heads = copy.deepcopy(trained)
    for exit in rolled_back:
        heads[exit].load_state_dict(previous[exit].state_dict())
    outputs = outputs_trained.replaced(rolled_back, outputs_previous)
    return GuardedExits(heads=heads, outputs=outputs, rolled_back=rolled_back)


def worse_exits(after: ExitOutputs, before: ExitOutputs, reference: Tensor) -> tuple[int, ...]:
    """Return the early exits with a lower accuracy on the calibration samples, or the same with a higher loss."""
    scores_before = list(zip(before.accuracies(reference), -before.losses(reference), strict=True))
    scores_after = list(zip(after.accuracies(reference), -after.losses(reference), strict=True))
    return tuple(i for i in range(len(scores_after) - 1) if scores_after[i] < scores_before[i])
