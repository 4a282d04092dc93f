"""What every candidate policy loses and costs one user, as a table: what the rules choose by, and what comes of it."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.personalise import Personalisation
from persephonee.clients.personalisation.risk.risk_curves import (
    RiskCurve,
    candidate_losses,
    candidate_policies,
    labelled_excess,
    own_excess,
    summed,
)
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.network import MultiExitNetwork

REFERENCES = ("last exit", "original")
"""What a loss is counted against: the last exit with the user's class frequencies, or the network as it was."""


def risk_rows(
    network: MultiExitNetwork, samples: UserSamples, split: SampleSplit, result: Personalisation, scheme: str
) -> pd.DataFrame:
    """Return a row per reference and candidate: what the calibration samples say, believed and in truth, and the test.

    Args:
        network: the global model.
        samples: of the user.
        split: whose calibration samples may have no usable labels.
        result: of the round.
        scheme: the figures' name of what the exits learned from.

    Returns:
        user, scheme, reference, candidate; half (0 and 1 in turn), samples, believed and lost as a `RiskCurve` counts
        them, cost; test_drop against the reference, test_accuracy, test_cost as a fraction of the original's, and the
        exit rates rate_0 to rate_M, the same in both halves.
    """
    return pd.concat([_rows_against(one, network, samples, split, result, scheme) for one in REFERENCES])


def _rows_against(
    reference: str,
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    result: Personalisation,
    scheme: str,
) -> pd.DataFrame:
    before, after = result.outputs_before, result.outputs
    is_original = reference == "original"
    raw = before.calibration.predictions[-1] if is_original else None
    answers, logits = after.calibration.predictions, after.calibration.logits[-1].astype(np.float64)
    truth, test_truth = samples.labels[split.calibration], samples.labels[split.test]
    known = np.where(split.labelled[split.calibration], truth, -1)
    believed, lost = (
        _curve(network, after.calibration, excess)
        for excess in (
            own_excess(answers, known, logits, network.calibration, raw),
            labelled_excess(answers, truth, raw),
        )
    )
    excess = labelled_excess(after.test.predictions, test_truth, before.test.predictions[-1] if is_original else None)
    drops, costs = _candidates(network, after.test, excess)
    reached = before.test.accuracies(test_truth)[-1] if is_original else after.test.accuracies(test_truth)[-1]
    count = len(believed.costs)
    leaving = [policy.exit_of(after.test.confidences) for policy in candidate_policies(network.num_exits)]
    rates = np.array([np.bincount(exits, minlength=network.num_exits + 1) / len(exits) for exits in leaving])
    return pd.DataFrame(
        {
            "user": samples.client_id,
            "scheme": scheme,
            "reference": reference,
            "candidate": np.tile(np.arange(count), 2),
            "half": np.repeat([0, 1], count),
            "samples": np.repeat(believed.samples, count),
            "believed": believed.excess.flatten(),
            "lost": lost.excess.flatten(),
            "cost": np.tile(believed.costs, 2),
            "test_drop": np.tile(drops.mean(axis=1), 2),
            "test_accuracy": np.tile(reached - drops.mean(axis=1), 2),
            "test_cost": np.tile(costs.mean(axis=1), 2),
            **{f"rate_{exit}": np.tile(rates[:, exit], 2) for exit in range(network.num_exits + 1)},
        }
    )


def curve_of(rows: pd.DataFrame, column: str) -> RiskCurve:
    """Return the risk curve in one user's rows of a scheme, of the column "believed" or "lost"."""
    halves = [rows[rows.half == half].sort_values("candidate") for half in (0, 1)]
    return RiskCurve(
        excess=np.array([half[column] for half in halves], dtype=np.int64),
        samples=(int(halves[0].samples.iloc[0]), int(halves[1].samples.iloc[0])),
        costs=halves[0].cost.to_numpy(dtype=np.int64),
    )


def _curve(network: MultiExitNetwork, outputs: ExitOutputs, excess: NDArray[np.float64]) -> RiskCurve:
    return summed(*_candidates(network, outputs, excess))


def _candidates(
    network: MultiExitNetwork, outputs: ExitOutputs, excess: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    original = float(network.costs.original_macs)
    return candidate_losses(outputs.confidences, excess, network.costs.leaving_macs, original)
