"""What a personalisation round reports: aggregates over a user's test samples, never a single sample."""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Of which exits a row speaks."""

    BEFORE = "before"
    """The global exits."""
    AFTER = "after"
    """The personal exits that the round left."""


@dataclass(frozen=True, kw_only=True)
class ExitMetrics:
    """One exit, before or after a round. Accuracy is in [0, 1], the loss in nats.

    Attributes:
        exit: number of the exit, from 0; the last exit is M.
        stage: with the global exits, or with the personal ones.
        accuracy: top-1 of this exit alone, on the test samples.
        loss: cross-entropy against the labels, mean over the test samples.
        exit_rate: fraction of the test samples that leave here under the stage's policy.
        kept: whether the stage's policy uses this exit; the last one always is.
        macs: cost of a network with this exit only, in MACs.
        num_test: number of test samples.
    """

    exit: int
    stage: Stage
    accuracy: float
    loss: float
    exit_rate: float
    kept: bool
    macs: int
    num_test: int


@dataclass(frozen=True, kw_only=True)
class PersonalisationReport:
    """One user's round.

    Attributes:
        client_id: the user's natural id.
        round: from 1.
        status: "ok", or why there is no result.
        num_train: training samples, with and without labels.
        num_calibration: calibration samples.
        num_test: test samples.
        labels: "all", "none", or the labelled fraction of training and calibration samples, such as "0.25".
        rule: which chose the policy, or why the original network stays in force; one of `policy_choice.OUTCOMES`.
        threshold: thr_conf in force after the round, in [0, 1].
        accuracy_original: of the last exit alone, on the test samples.
        accuracy_before: of the policy calibrated with the global exits.
        accuracy_after: of the policy in force after the round.
        mean_macs: average cost of a test sample under the policy in force, in MACs.
        mean_macs_before: the same under the policy calibrated with the global exits.
        original_macs: cost of the original network.
        seconds_personalise: wall time of the round.
        rolled_back_exits: exits that kept their previous weights, since training made them worse.
        exit_metrics: 2 (M + 1) rows, all exits before, then all exits after.
    """

    client_id: str
    round: int
    status: str
    num_train: int
    num_calibration: int
    num_test: int
    labels: str
    rule: str
    threshold: float
    accuracy_original: float
    accuracy_before: float
    accuracy_after: float
    mean_macs: float
    mean_macs_before: float
    original_macs: int
    seconds_personalise: float
    rolled_back_exits: tuple[int, ...]
    exit_metrics: tuple[ExitMetrics, ...]

    def exits_at(self, stage: Stage) -> tuple[ExitMetrics, ...]:
        """Return the rows of a stage in the order of the exits, the last exit at the end."""
        return tuple(metrics for metrics in self.exit_metrics if metrics.stage == stage)
