"""One hostile client of six, under the defaults, costs the merged exits at most two points."""

import numpy as np
import pytest

from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.experiments.byzantine.attacks import ATTACKS
from persephonee.experiments.byzantine.experiment import measure_rounds, several_rounds
from persephonee.experiments.byzantine.hostile_round import FALSE, FLIPPED, HONEST, Judge, strategies
from persephonee.fl_app.server_side.aggregation import allow_messages_outside_a_run
from tests.clients.conftest import _trained_toy_network, draw_user, toy_network  # noqa: F401, they are fixtures

ROUNDS, EPOCHS = 4, 3
EVERY_ATTACK = [name + lie for name in (*ATTACKS, FLIPPED) for lie in ("", FALSE)]


@pytest.fixture
def federation(toy_network, draw_user):  # noqa: F811
    """The exits of a network, forgotten in part, six users who train them again, and a judge on four others."""
    allow_messages_outside_a_run()
    users = [draw_user(f"u{n}", n=120, tilt=n % 3, seed=n) for n in range(10)]
    parted = [(user, split_samples(user, SplitSettings(), seed=0)) for user in users]
    network = toy_network.freeze_backbone()
    judge = Judge(network, parted[6:])
    return network, parted[:6], judge


def trained(federation, settings, hostile, attack):
    network, users, judge = federation
    return several_rounds(network, users, judge, settings, hostile=hostile, attack=attack, rounds=ROUNDS, epochs=EPOCHS)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg"])
def test_one_hostile_client_of_six_costs_at_most_two_points_whatever_it_does_in_every_round(federation, strategy):
    settings = strategies(1)[strategy]
    honest = trained(federation, settings, 0, HONEST)[-1]
    lost = {attack: honest - trained(federation, settings, 1, attack)[-1] for attack in EVERY_ATTACK}
    print({attack: f"{100 * points:.1f}" for attack, points in lost.items()})
    assert max(lost.values()) <= 0.02, lost


@pytest.mark.slow
def test_without_bounds_one_hostile_client_of_six_takes_the_exits_over(federation):
    settings = strategies(1)["fedavg without bounds"]
    honest = trained(federation, settings, 0, HONEST)[-1]
    assert honest - trained(federation, settings, 1, "noise" + FALSE)[-1] > 0.2


def test_rounds_go_on_from_what_the_round_before_merged_and_leave_the_network_as_it_was(federation):
    network, users, judge = federation
    before = network.exit_state()
    table = measure_rounds(network, users[:3], judge, [1], rounds=2, epochs=1)
    assert all(tensor.equal(before[name]) for name, tensor in network.exit_state().items())
    counts = table.groupby(["strategy", "hostile"]).size()
    assert counts["fedavg", 0] == 2 and counts["fedavg", 1] == 6
    again = several_rounds(
        network, users[:3], judge, strategies(0)["fedavg"], hostile=0, attack=HONEST, rounds=2, epochs=1
    )
    honest = table[(table.strategy == "fedavg") & (table.hostile == 0)].accuracy
    assert np.array_equal(honest, again)
