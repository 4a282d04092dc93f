"""What users who trained nothing lose: the same curves whether they personalise one by one or together."""

import logging

import numpy as np
import pytest

from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.data_partitions.samples import UserSamples
from persephonee.fl_app.server_side import held_out_pools, user_groups
from persephonee.fl_app.server_side.held_out_pools import make_pools
from persephonee.multi_exit.network import MultiExitNetwork
from tests.fl_app.server_side.held_out_writers import HeldOutWriters, untrained_network


@pytest.fixture
def network() -> MultiExitNetwork:
    return untrained_network()


def test_users_who_personalise_together_give_the_pools_of_those_who_do_one_by_one(network, monkeypatch):
    alone, count = make_pools(network, HeldOutWriters(), HeldOutWriters.client_ids)
    groups = []
    grouped = held_out_pools._of_group
    monkeypatch.setattr(user_groups, "_is_on_gpu", lambda network: True)
    monkeypatch.setattr(held_out_pools, "_of_group", lambda n, users: groups.append(users) or grouped(n, users))
    together, same_count = make_pools(network, HeldOutWriters(), HeldOutWriters.client_ids)
    assert [[len(user.samples) for user in group] for group in groups] == [[90, 95, 100, 110]]
    assert count == same_count == 4
    assert alone.keys() == together.keys()
    assert len(alone) == 10
    # without class frequencies the last exit in force is the original
    assert alone["fast-labels"] == alone["fast-labels-original"]
    for name in alone:
        pools = [RiskPool.from_json(made[name], network.num_exits) for made in (alone, together)]
        risks, costs = ([getattr(pool, column) for pool in pools] for column in ("risks", "costs"))
        # in the units of a pool, which are far below what one sample makes
        assert np.abs(risks[0] - risks[1]).max() <= 2
        assert np.abs(costs[0] - costs[1]).max() <= 2


def test_near_duplicates_of_held_out_users_are_not_looked_for(network, caplog):
    class Copied(HeldOutWriters):
        def load_partition(self, partition_id: int) -> UserSamples:
            samples = super().load_partition(partition_id)
            samples.images[1::2] = samples.images[: len(samples.images) // 2 * 2 : 2]
            samples.images[1::2, 0, 0, 0] ^= 1
            return samples

    caplog.set_level(logging.WARNING)
    make_pools(network, Copied(), HeldOutWriters.client_ids[:1])
    assert caplog.messages == []
