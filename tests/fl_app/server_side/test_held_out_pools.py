"""What users who trained nothing lose: the same curves whether they personalise one by one or together."""

import logging

import numpy as np
import pytest
import torch

from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.data_partitions.samples import UserSamples
from persephonee.fl_app.server_side import held_out_pools
from persephonee.fl_app.server_side.held_out_pools import RemainingTime, least_gain_of, make_pools, prior_trials
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.exit_calibration import LEAST_GAIN, ExitCalibration
from persephonee.multi_exit.network import MultiExitNetwork
from tests.tiny_cnn import NAME, SIDE, SOURCE, user_images


class Writers:
    """Users of unlike sizes, one of them with too few samples."""

    sizes = (110, 90, 100, 6, 95)
    client_ids = tuple(f"u{number}" for number in range(len(sizes)))

    def load_partition(self, partition_id: int) -> UserSamples:
        images, labels = user_images(partition_id, self.sizes[partition_id])
        return UserSamples(client_id=self.client_ids[partition_id], images=images[:, None], labels=labels)


@pytest.fixture
def network() -> MultiExitNetwork:
    return build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))


def test_users_who_personalise_together_give_the_pools_of_those_who_do_one_by_one(network, monkeypatch):
    alone, count = make_pools(network, Writers(), Writers.client_ids)
    groups = []
    grouped = held_out_pools._of_group
    monkeypatch.setattr(held_out_pools, "_is_on_gpu", lambda network: True)
    monkeypatch.setattr(held_out_pools, "_of_group", lambda n, users: groups.append(users) or grouped(n, users))
    together, same_count = make_pools(network, Writers(), Writers.client_ids)
    assert [[len(user.samples) for user in group] for group in groups] == [[90, 95, 100, 110]]
    assert count == same_count == 4
    assert alone.keys() == together.keys()
    assert len(alone) == 6
    for name in alone:
        pools = [RiskPool.from_json(made[name], network.num_exits) for made in (alone, together)]
        risks, costs = ([getattr(pool, column) for pool in pools] for column in ("risks", "costs"))
        # in the units of a pool, which are far below what one sample makes
        assert np.abs(risks[0] - risks[1]).max() <= 2
        assert np.abs(costs[0] - costs[1]).max() <= 2


def test_a_group_is_no_larger_than_the_memory_that_it_may_take(network, monkeypatch):
    monkeypatch.setattr(held_out_pools, "_is_on_gpu", lambda network: True)
    monkeypatch.setattr(held_out_pools, "GROUP_USERS", 3)
    sizes = [
        [len(user.samples) for user in group]
        for group in held_out_pools._groups(network, Writers(), Writers.client_ids)
    ]
    assert sizes == [[90, 95, 100], [110]]
    monkeypatch.setattr(held_out_pools, "GROUP_BYTES", 1)
    sizes = [
        [len(user.samples) for user in group]
        for group in held_out_pools._groups(network, Writers(), Writers.client_ids)
    ]
    assert sorted(size for (size,) in sizes) == [90, 95, 100, 110]


def sizes_of_groups(network) -> list[list[int]]:
    groups = held_out_pools._groups(network, Writers(), Writers.client_ids)
    return [[len(user.samples) for user in group] for group in groups]


def test_near_duplicates_of_held_out_users_are_not_looked_for(network, caplog):
    class Copied(Writers):
        def load_partition(self, partition_id: int) -> UserSamples:
            samples = super().load_partition(partition_id)
            samples.images[1::2] = samples.images[: len(samples.images) // 2 * 2 : 2]
            samples.images[1::2, 0, 0, 0] ^= 1
            return samples

    caplog.set_level(logging.WARNING)
    make_pools(network, Copied(), Writers.client_ids[:1])
    assert caplog.messages == []


def test_what_is_left_follows_from_what_is_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(held_out_pools.time, "monotonic", lambda: now[0])
    estimate = RemainingTime()
    now[0] = 20.0
    assert estimate.words(1, 4) == "1 of 4 users, about 60 s more"
    assert estimate.words(2, 20) == "2 of 20 users, about 3 min more"


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
    assert least_gain_of(found) == pytest.approx(bound)


def test_a_held_out_user_whose_frequencies_are_found_says_what_they_are_worth(network, monkeypatch):
    network.calibration = ExitCalibration(
        temperatures=(1.0,) * 3, biases=((0.0, 0.0),) * 3, frequencies=(0.5, 0.5), least_gain=9.0
    )

    def logits(network, images):
        # the last exit is sure of class 0, whatever it sees: half of the answers are wrong with any frequencies
        return held_out_pools.FeatureCache(maps=(), last_logits=torch.tensor([[2.0, 0.0]]).repeat(len(images), 1))

    monkeypatch.setattr(held_out_pools, "features_of", logits)
    trials = prior_trials(network, Writers(), Writers.client_ids)
    # the user with too few samples is left out, the model's own bound does not hide the others
    assert len(trials) == 4
    assert all(gain > LEAST_GAIN and change == 0 for gain, change in trials)
