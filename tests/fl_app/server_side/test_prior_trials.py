"""What class frequencies are worth to users who trained nothing, and the bound that follows from it."""

import pytest
import torch

from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.fl_app.server_side import prior_trials
from persephonee.multi_exit.exit_calibration import LEAST_GAIN, ExitCalibration
from tests.fl_app.server_side.held_out_writers import HeldOutWriters, untrained_network


@pytest.mark.parametrize(
    ("found", "bound"),
    [
        ([], LEAST_GAIN),
        ([(0.2, 0.1), (0.5, 0.2)], LEAST_GAIN),
        # the small shifts do harm, the large ones help
        ([(0.2, -0.1), (0.3, -0.2), (0.9, 0.15)], 0.3),
        # one user's harm is outweighed by two others
        ([(0.2, -0.1), (0.5, 0.2)], LEAST_GAIN),
        # all of them do harm: only more than anybody had is believed
        ([(0.2, -0.1), (0.6, -0.3)], 0.6),
    ],
)
def test_the_least_gain_is_the_smallest_above_which_held_out_users_gained(found, bound):
    assert prior_trials.least_gain_of(found) == pytest.approx(bound)


def test_a_held_out_user_whose_frequencies_are_found_says_what_they_are_worth(monkeypatch):
    network = untrained_network()
    network.calibration = ExitCalibration(
        temperatures=(1.0,) * 3, biases=((0.0, 0.0),) * 3, frequencies=(0.5, 0.5), least_gain=9.0
    )

    def logits(network, images):
        # the last exit is sure of class 0, whatever it sees: half of the answers are wrong with any frequencies
        return FeatureCache(maps=(), last_logits=torch.tensor([[2.0, 0.0]]).repeat(len(images), 1))

    monkeypatch.setattr(prior_trials, "features_of", logits)
    trials = prior_trials.prior_trials(network, HeldOutWriters(), HeldOutWriters.client_ids)
    # the user with too few samples is left out, the model's own bound does not hide the others
    assert len(trials) == 4
    assert all(gain > LEAST_GAIN and change == 0 for gain, change in trials)
