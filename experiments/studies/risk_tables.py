"""What every candidate policy loses and costs one user, as a table: what the rules choose by, and what comes of it."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.personalise import Personalisation
from persephonee.clients.personalisation.risk.risk_curves import (
    RiskCurve,
    candidate_losses,
    labelled_excess,
    own_excess,
    summed,
)
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.network import MultiExitNetwork


def risk_rows(
    network: MultiExitNetwork, samples: UserSamples, split: SampleSplit, result: Personalisation, scheme: str
) -> pd.DataFrame:
    """Return a row per candidate: what the calibration samples say of it, believed and in truth, and the test samples.

    Args:
        network: the global model.
        samples: of the user.
        split: whose calibration samples may have no usable labels.
        result: of the round.
        scheme: the figures' name of what the exits learned from.

    Returns:
        user, scheme, candidate; half (0 and 1 in turn), samples, believed and lost as a `RiskCurve` counts them, cost;
        test_drop and test_cost, fractions, the same in both halves.
    """
    known = np.where(split.labelled[split.calibration], samples.labels[split.calibration], -1)
    calibration, truth = result.outputs.calibration, samples.labels[split.calibration]
    believed, lost = (
        _curve(network, calibration, excess)
        for excess in (
            own_excess(calibration.predictions, known, calibration.logits[-1].astype(np.float64), network.calibration),
            labelled_excess(calibration.predictions, truth),
        )
    )
    excess = labelled_excess(result.outputs.test.predictions, samples.labels[split.test])
    drops, costs = _candidates(network, result.outputs.test, excess)
    count = len(believed.costs)
    return pd.DataFrame(
        {
            "user": samples.client_id,
            "scheme": scheme,
            "candidate": np.tile(np.arange(count), 2),
            "half": np.repeat([0, 1], count),
            "samples": np.repeat(believed.samples, count),
            "believed": believed.excess.flatten(),
            "lost": lost.excess.flatten(),
            "cost": np.tile(believed.costs, 2),
            "test_drop": np.tile(drops.mean(axis=1), 2),
            "test_cost": np.tile(costs.mean(axis=1), 2),
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
