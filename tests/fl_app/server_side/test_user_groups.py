"""Held-out users of like sizes personalise together, as far as the memory of a GPU allows."""

import pytest

from persephonee.fl_app.server_side import user_groups
from persephonee.multi_exit.network import MultiExitNetwork
from tests.fl_app.server_side.held_out_writers import HeldOutWriters, untrained_network


@pytest.fixture
def network() -> MultiExitNetwork:
    return untrained_network()


def sizes_of_groups(network) -> list[list[int]]:
    groups = user_groups.user_groups(network, HeldOutWriters(), HeldOutWriters.client_ids)
    return [[len(user.samples) for user in group] for group in groups]


def test_a_group_is_no_larger_than_the_memory_that_it_may_take(network, monkeypatch):
    monkeypatch.setattr(user_groups, "_is_on_gpu", lambda network: True)
    monkeypatch.setattr(user_groups, "GROUP_USERS", 3)
    assert sizes_of_groups(network) == [[90, 95, 100], [110]]
    monkeypatch.setattr(user_groups, "GROUP_BYTES", 1)
    assert sorted(sizes_of_groups(network)) == [[90], [95], [100], [110]]
