"""What class frequencies that are found without labels are worth to users who trained nothing (step 2, prior)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from persephonee.clients.personalisation.exit_shifts import class_prior
from persephonee.clients.personalisation.features import features_of
from persephonee.data_partitions.samples import Partitions
from persephonee.fl_app.server_side.user_groups import with_split
from persephonee.multi_exit.exit_calibration import LEAST_GAIN
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import UNLABELLED


def prior_trials(network: MultiExitNetwork, partitions: Partitions, users: Sequence[str]) -> list[tuple[float, float]]:
    """Return of each held-out user for whom class frequencies are found without labels what they are worth.

    A pair is their gain in nats a sample, and by how much the last exit's accuracy rises with them on the other
    samples, in [-1, 1]. A user who writes another hand may look like one of other classes, and only labels tell.
    """
    calibration, found = network.calibration, []
    assert calibration is not None
    for name in users:
        user = with_split(partitions, name)
        if user is None:
            continue
        features = features_of(network, user.samples.images)
        nobody = np.full(len(user.samples), UNLABELLED)
        prior = class_prior(replace(calibration, least_gain=LEAST_GAIN), features, nobody, user.split, 0, name, 1)
        if prior.is_shifted:
            raw, truth = features.last_exit_logits[user.split.judged], user.samples.labels[user.split.judged]
            with_prior = raw + calibration.temperatures[-1] * prior.shift
            change = (with_prior.argmax(axis=1) == truth).mean() - (raw.argmax(axis=1) == truth).mean()
            found.append((prior.gain, float(change)))
    return found


def least_gain_of(found: Sequence[tuple[float, float]]) -> float:
    """Return the smallest bound on the gain above which the users' accuracy rises on average, or nobody is left."""
    bounds = [LEAST_GAIN, *sorted(gain for gain, _ in found)]
    return next(bound for bound in bounds if sum(change for gain, change in found if gain > bound) >= 0)
