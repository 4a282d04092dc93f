"""Membership inference: from what an attacker sees to a guess whether a sample was trained on.

Scores are higher for samples that are more likely members. Shapes: E exits, N samples of one user, S shadow models.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
MIN_VARIANCE = 1e-12


def loss_scores(losses: Floats) -> Floats:
    """Return minus the mean loss over the exits: members have been fitted (Yeom et al. 2018, arXiv 1709.01604).

    Args:
        losses: losses of the E exits that the attacker sees on N samples, shape [E, N], in nats.
    """
    scores: Floats = -losses.mean(axis=0)
    return scores


def calibrated_scores(losses: Floats, global_losses: Floats) -> Floats:
    """Return how much lower the losses are than with the global exits (Watson et al. 2022, arXiv 2111.08440).

    That takes out how difficult a sample is in itself. Both shapes [E, N].
    """
    scores: Floats = (global_losses - losses).mean(axis=0)
    return scores


def likelihood_ratio_scores(target: Floats, shadows: Floats, members: Booleans) -> Floats:
    """Return the log likelihood ratio of member and non-member, summed over the exits (LiRA, Carlini et al. 2022).

    The attacker of arXiv 2112.03570 trains shadow models on random halves of the user's samples, with and without
    each one, and fits two Gaussians to a statistic; with few shadows the variance is shared by all samples.

    Args:
        target: the statistic under attack, shape [E, N]; or [E, 1] where it is the same for all samples.
        shadows: the statistic of the shadows, shape [S, E, N] or [S, E, 1].
        members: which samples each shadow was trained on, shape [S, N]; both kinds for each sample.
    """
    inside = members[:, None, :].astype(np.float64)
    mean_in = (shadows * inside).sum(axis=0) / inside.sum(axis=0)
    mean_out = (shadows * (1 - inside)).sum(axis=0) / (1 - inside).sum(axis=0)
    deviations = shadows - np.where(members[:, None, :], mean_in, mean_out)
    # two means were fitted to S values
    variance = (deviations**2).sum(axis=(0, 2), keepdims=True)[0] / (deviations[:, 0].size - 2 * members.shape[1])
    variance = np.maximum(variance, MIN_VARIANCE)
    ratio: Floats = (((target - mean_out) ** 2 - (target - mean_in) ** 2) / (2 * variance)).sum(axis=0)
    return ratio


def logit_confidence(log_probabilities: Floats) -> Floats:
    """Return log(p / (1 - p)) of the true class's log p, which is nearly Gaussian (Carlini et al. 2022, Sec. IV)."""
    clipped = np.minimum(log_probabilities, -1e-12)
    logits: Floats = clipped - np.log(-np.expm1(clipped))
    return logits


def area_under_curve(scores: Floats, members: Booleans) -> float:
    """Return the fraction of pairs in which the member scores higher, ties counting half; 0.5 is guessing.

    Both shape [N]; NaN where one of the two kinds is missing.
    """
    count, others = int(members.sum()), int((~members).sum())
    if not count or not others:
        return float("nan")
    ranks = pd.Series(scores).rank().to_numpy()
    return float((ranks[members].sum() - count * (count + 1) / 2) / (count * others))


def advantage(scores: Floats, members: Booleans) -> float:
    """Return the largest true minus false positive rate over all thresholds, in [0, 1] (Yeom et al. 2018).

    The threshold is chosen on the same samples, so even guessing has about 1.2 / sqrt(N) for N of each kind.
    """
    true, false = _rates(scores, members)
    return float((true - false).max())


def true_positive_rate(scores: Floats, members: Booleans, false_positive_rate: float) -> float:
    """Return the largest fraction of members found while at most so many of the others are accused."""
    true, false = _rates(scores, members)
    return float(true[false <= false_positive_rate].max())


def _rates(scores: Floats, members: Booleans) -> tuple[Floats, Floats]:
    """Return the true and the false positive rates at all thresholds, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    # a threshold cannot part equal scores
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true = np.cumsum(members[order])[ends] / members.sum()
    false = np.cumsum(~members[order])[ends] / (~members).sum()
    return np.append(0.0, true), np.append(0.0, false)
