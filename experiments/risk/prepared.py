"""A user of the study: the samples under every candidate policy, and what a policy makes of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.calibration import CalibrationSet, LeavingCosts, calibrate
from persephonee.clients.personalisation.familiar_images import FamiliarImages
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.risk.pruning import prune
from persephonee.clients.personalisation.risk.risk_curves import (
    RiskCurve,
    candidate_losses,
    labelled_excess,
    own_excess,
    summed,
)
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.seeds import numpy_generator
from persephonee.experiments.risk.exit_outputs import Answered, UserOutputs
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import UNLABELLED

SETTINGS = PersonalisationSettings()


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What all exits answer on N images.

    Attributes:
        confidences: top-1 softmax, [M+1, N].
        checked: the same, 0 at early exits for images that are unlike the user's own.
        predictions: classes, [M+1, N].
        correct: whether each exit is right, [M+1, N].
    """

    confidences: NDArray[np.float64]
    checked: NDArray[np.float64]
    predictions: NDArray[np.int64]
    correct: NDArray[np.bool_]

    @classmethod
    def of(cls, answered: Answered, familiar: FamiliarImages | None) -> "Judged":
        """Return what the answers come to."""
        confidences, predictions = answers_of(answered.logits.astype(np.float64))
        checked = confidences.copy()
        if familiar is not None:
            checked[:-1, familiar.unfamiliar_statistics(answered.statistics)] = 0
        return cls(
            confidences=confidences,
            checked=checked,
            predictions=predictions,
            correct=predictions == answered.labels,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A user's samples under every candidate: what the device believes they lose, what they lose, what they cost."""

    domain: str
    believed: NDArray[np.float64]
    lost: NDArray[np.float64]
    costs: NDArray[np.float64]
    judged: Judged
    reference_correct: NDArray[np.bool_]
    """As the paper's rule counts: against the labels, or the last exit's answers where there are none."""
    excess: NDArray[np.float64]
    num_calibration: int
    leaving_costs: LeavingCosts
    unfamiliar: dict[str, Judged]

    def drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return all samples in a random order."""
        return rng.permutation(self.lost.shape[1])

    def curve(self, samples: NDArray[np.int64]) -> RiskCurve:
        """Return the risk curve of some samples, as the device believes it."""
        return summed(self.believed[:, samples], self.costs[:, samples])

    def true_curve(self, samples: NDArray[np.int64]) -> RiskCurve:
        """Return the curve of what is lost in truth."""
        return summed(self.lost[:, samples], self.costs[:, samples])

    def as_the_paper_says(self, calibrating: NDArray[np.int64]) -> ExitPolicy:
        """Return the policy of the paper's rule, which knows no check."""
        own = CalibrationSet(
            confidences=self.judged.confidences[:, calibrating],
            correct=self.reference_correct[:, calibrating],
            leaving_costs=self.leaving_costs,
        )
        return prune(own, calibrate(own, SETTINGS), SETTINGS).policy

    def outcome(self, policy: ExitPolicy, judged: NDArray[np.int64], checked: bool) -> dict[str, float]:
        """Return what the user loses against the last exit, and the cost over the original network's."""
        exits = policy.exit_of(_confidences(self.judged, checked)[:, judged])
        leaving = np.full(policy.num_exits + 1, np.nan)
        leaving[[*policy.exits_in_use, policy.num_exits]] = self.leaving_costs(policy.exits_in_use)
        cost = leaving[exits].mean() / self.leaving_costs(())[-1]
        return {"drop": float(self.excess[exits, judged].mean()), "cost": float(cost)}

    def on_unfamiliar(self, policy: ExitPolicy, checked: bool) -> dict[str, float]:
        """Return which fraction of images of another kind reaches the last exit, and what is right of the answers."""
        found = {}
        for kind, of in self.unfamiliar.items():
            exits, everyone = policy.exit_of(_confidences(of, checked)), np.arange(of.correct.shape[1])
            found[f"{kind}_last"] = float((exits == policy.num_exits).mean())
            found[f"{kind}_right"] = float(of.correct[exits, everyone].mean())
            found[f"{kind}_right_last"] = float(of.correct[-1].mean())
        return found


def prepare(outputs: UserOutputs, network: MultiExitNetwork, labels: float, unfamiliar_fraction: float) -> Prepared:
    """Return what the rules need of a user.

    Args:
        outputs: of a round with this fraction of labels.
        network: its costs and its calibration.
        labels: the fraction of the samples whose label the device knows.
        unfamiliar_fraction: of the user's images; 0 makes no check. The training images say what is familiar, so that
            no redraw judges an image that has said so.
    """
    familiar = FamiliarImages.of(outputs.training, unfamiliar_fraction) if unfamiliar_fraction else None
    judged, truth, costs = Judged.of(outputs.judged, familiar), outputs.judged.labels, network.costs
    excess = labelled_excess(judged.predictions, truth)
    is_known = numpy_generator(0, outputs.user, "labels of the study").random(len(truth)) < labels
    last_logits = outputs.judged.logits[-1].astype(np.float64)
    believed = own_excess(judged.predictions, np.where(is_known, truth, UNLABELLED), last_logits, network.calibration)
    original = float(costs.original_macs)
    losses, spent = candidate_losses(judged.checked, believed, costs.leaving_macs, original)
    return Prepared(
        domain=outputs.domain,
        believed=losses,
        lost=candidate_losses(judged.checked, excess, costs.leaving_macs, original)[0],
        costs=spent,
        judged=judged,
        reference_correct=judged.predictions == np.where(is_known, truth, judged.predictions[-1]),
        excess=excess,
        num_calibration=outputs.num_calibration,
        leaving_costs=costs.leaving_macs,
        unfamiliar={kind: Judged.of(of, familiar) for kind, of in outputs.unfamiliar.items()},
    )


def answers_of(logits: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the top-1 softmax and class, each [M+1, N], of logits [M+1, N, K]."""
    likely = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (likely / likely.sum(axis=2, keepdims=True)).max(axis=2), logits.argmax(axis=2)


def _confidences(judged: Judged, checked: bool) -> NDArray[np.float64]:
    return judged.checked if checked else judged.confidences
