"""What the exits answer on a set of samples, and what a policy makes of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.calibration import exit_rates
from persephonee.clients.personalisation.familiar_images import FamiliarImages
from persephonee.clients.personalisation.features import Features, Indices, Logits, features_of
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.reports import ExitMetrics, PersonalisationReport, Stage
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.costs import CostTable
from persephonee.multi_exit.exit_weights import ExitWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from persephonee.clients.personalisation.feature_cache import FeatureCache
    from persephonee.clients.personalisation.features import Network

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ExitOutputs:
    """What all M+1 exits answer on N samples.

    Attributes:
        logits: shape [M+1, N, K], float32.
        predictions: top-1 class, shape [M+1, N].
        confidences: top-1 softmax, shape [M+1, N], in [0, 1]; of early exits 0 for images that are unfamiliar.
    """

    logits: Logits
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float64]

    @classmethod
    def of(cls, logits: "Logits | Tensor") -> "ExitOutputs":
        """Return the outputs that belong to logits [M+1, N, K]."""
        logits = np.asarray(logits)
        # in float64, since in float32 a sure exit's softmax rounds to 1
        precise = logits.astype(np.float64)
        confidences = 1 / np.exp(precise - precise.max(axis=2, keepdims=True)).sum(axis=2)
        return cls(logits, logits.argmax(axis=2), confidences)

    def replaced(self, exits: Sequence[int], by: "ExitOutputs") -> "ExitOutputs":
        """Return the same with what another set of heads answers at these exits."""
        logits = self.logits.copy()
        logits[list(exits)] = by.logits[list(exits)]
        return self.of(logits)

    def with_unfamiliar(self, unfamiliar: NDArray[np.bool_]) -> "ExitOutputs":
        """Return the same where no early exit is confident of these samples, [N]."""
        confidences = self.confidences.copy()
        confidences[:-1, unfamiliar] = 0
        return replace(self, confidences=confidences)

    def losses(self, reference: "Labels | Tensor") -> NDArray[np.float64]:
        """Return each exit's mean cross-entropy against classes [N], shape [M+1], in nats."""
        reference, precise = np.asarray(reference), self.logits.astype(np.float64)
        top = precise.max(axis=2)
        sums = top + np.log(np.exp(precise - top[:, :, None]).sum(axis=2))
        losses: NDArray[np.float64] = (sums - precise[:, np.arange(len(reference)), reference]).mean(axis=1)
        return losses

    def accuracies(self, reference: "Labels | Tensor") -> NDArray[np.float64]:
        """Return each exit's fraction of answers equal to classes [N], shape [M+1], in [0, 1]."""
        accuracies: NDArray[np.float64] = (self.predictions == np.asarray(reference)).mean(axis=1)
        return accuracies


@dataclass(frozen=True, eq=False)
class JudgedOutputs:
    """What all M+1 exits answer on the samples on which a round judges them.

    Attributes:
        calibration: on the calibration samples, which choose.
        test: on the test samples, which serve the report alone.
    """

    calibration: ExitOutputs
    test: ExitOutputs

    @classmethod
    def of(cls, early: Logits, features: Features, split: SampleSplit) -> "JudgedOutputs":
        """Return the outputs that belong to the early exits' logits [M, n, K] on the n samples `split.judged`."""
        return cls.parted(early, features.last_exit_logits[split.judged], len(split.calibration))

    @classmethod
    def parted(cls, early: Logits, last: Logits, num_calibration: int) -> "JudgedOutputs":
        """Return the outputs that belong to logits [M, n, K] and [n, K], of which the first calibrate."""
        logits = np.concatenate([early, last[None]])
        return cls(ExitOutputs.of(logits[:, :num_calibration]), ExitOutputs.of(logits[:, num_calibration:]))

    @property
    def all(self) -> ExitOutputs:
        """On both, calibration samples first."""
        both = ((part.logits, part.predictions, part.confidences) for part in (self.calibration, self.test))
        return ExitOutputs(*(np.concatenate(parts, axis=1) for parts in zip(*both, strict=True)))

    def with_unfamiliar(
        self, familiar: FamiliarImages | None, samples: UserSamples, split: SampleSplit
    ) -> "JudgedOutputs":
        """Return the same where no early exit is confident of images that are unfamiliar."""
        if familiar is None:
            return self
        parts = ((self.calibration, split.calibration), (self.test, split.test))
        return JudgedOutputs(*(of.with_unfamiliar(familiar.unfamiliar(samples.images[own])) for of, own in parts))

    def replaced(self, exits: Sequence[int], by: "JudgedOutputs") -> "JudgedOutputs":
        """Return the same with what another set of heads answers at these exits."""
        return JudgedOutputs(self.calibration.replaced(exits, by.calibration), self.test.replaced(exits, by.test))


def run_exits(
    exits: "ExitWeights | nn.ModuleList", features: "Features | FeatureCache", samples: "Indices | Tensor"
) -> ExitOutputs:
    """Return what the exits and the last exit answer on the samples with indices `samples`, [n].

    Args:
        exits: their weights; beside PyTorch's features also the heads themselves.
        features: of all samples.
        samples: indices.
    """
    samples = np.asarray(samples)
    early = features.exit_logits(exits, samples)  # type: ignore[arg-type]
    return ExitOutputs.of(np.concatenate([early, features.last_exit_logits[None, samples]]))


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """What a policy achieves on N samples.

    Attributes:
        accuracy: of the answers that it gives, in [0, 1].
        mean_macs: average cost of a sample, in MACs.
        exit_rates: fraction of the samples that leave at each of the M+1 exits.
    """

    accuracy: float
    mean_macs: float
    exit_rates: tuple[float, ...]


def apply_policy(outputs: ExitOutputs, policy: ExitPolicy, reference: Labels, costs: CostTable) -> PolicyResult:
    """Return what the policy achieves against classes [N]."""
    exit_indices = policy.exit_of(outputs.confidences)
    predictions = outputs.predictions[exit_indices, np.arange(len(exit_indices))]
    rates = exit_rates(exit_indices, policy.num_exits)
    leaving = np.array(costs.leaving_macs(policy.exits_in_use), dtype=np.float64)
    return PolicyResult(
        accuracy=float((predictions == reference).mean()),
        mean_macs=float(rates[[*policy.exits_in_use, policy.num_exits]] @ leaving),
        exit_rates=tuple(rates.tolist()),
    )


def exit_metrics(
    outputs: ExitOutputs, policy: ExitPolicy, labels: Labels, costs: CostTable, stage: Stage
) -> tuple[ExitMetrics, ...]:
    """Return a row for each of the M+1 exits, measured against the labels [N] of the test samples."""
    rates = apply_policy(outputs, policy, labels, costs).exit_rates
    accuracies, losses = outputs.accuracies(labels), outputs.losses(labels)
    return tuple(
        ExitMetrics(
            exit=exit,
            stage=stage,
            accuracy=float(accuracies[exit]),
            loss=float(losses[exit]),
            exit_rate=rates[exit],
            kept=exit in policy.exits_in_use or exit == policy.num_exits,
            macs=costs.alone_macs(exit),
            num_test=len(labels),
        )
        for exit in range(policy.num_exits + 1)
    )


def report_round(
    samples: UserSamples,
    split: SampleSplit,
    truth: Labels,
    costs: CostTable,
    *,
    outputs_before: ExitOutputs,
    policy_before: ExitPolicy,
    outputs_after: ExitOutputs,
    policy_after: ExitPolicy,
    chosen_by: str,
    round_number: int,
    labels: str,
    rolled_back: tuple[int, ...],
    seconds: float,
) -> PersonalisationReport:
    """Return the report on the test samples.

    Args:
        samples: of the user.
        split: which of them test.
        truth: classes of the test samples, [n].
        costs: of the network.
        outputs_before: of the global exits and of the raw last exit.
        policy_before: chosen for them.
        outputs_after: of the personal exits and of the last exit as the policy uses it.
        policy_after: chosen for them.
        chosen_by: what chose it, one of `risk.policy_choice.OUTCOMES`.
        round_number: from 1.
        labels: as `labelled_fraction` says it.
        rolled_back: exits that the guard put back.
        seconds: that the round took.
    """
    before = apply_policy(outputs_before, policy_before, truth, costs)
    after = apply_policy(outputs_after, policy_after, truth, costs)
    return PersonalisationReport(
        client_id=samples.client_id,
        round=round_number,
        status="ok",
        num_train=len(split.train),
        num_calibration=len(split.calibration),
        num_test=len(split.test),
        labels=labels,
        rule=chosen_by,
        threshold=policy_after.threshold,
        accuracy_original=float(outputs_before.accuracies(truth)[-1]),
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        mean_macs=after.mean_macs,
        mean_macs_before=before.mean_macs,
        original_macs=costs.original_macs,
        seconds_personalise=seconds,
        rolled_back_exits=rolled_back,
        exit_metrics=(
            *exit_metrics(outputs_before, policy_before, truth, costs, Stage.BEFORE),
            *exit_metrics(outputs_after, policy_after, truth, costs, Stage.AFTER),
        ),
    )


def evaluate_exits(
    network: "Network", exits: "ExitWeights | nn.ModuleList", images: NDArray[np.uint8], labels: Labels
) -> tuple[ExitMetrics, ...]:
    """Return a row "before" for each of the M+1 exits, trained by nobody and under no policy, so without exit rates.

    Args:
        network: its backbone.
        exits: weights of M exits, or heads of PyTorch.
        images: of the test samples, uint8, shape [N, C, H, W].
        labels: class indices, shape [N].
    """
    outputs = run_exits(exits, features_of(network, images), np.arange(len(images)))
    accuracies, losses = outputs.accuracies(labels), outputs.losses(labels)
    return tuple(
        ExitMetrics(
            exit=exit,
            stage=Stage.BEFORE,
            accuracy=float(accuracies[exit]),
            loss=float(losses[exit]),
            exit_rate=math.nan,
            kept=True,
            macs=network.costs.alone_macs(exit),
            num_test=len(labels),
        )
        for exit in range(network.num_exits + 1)
    )
