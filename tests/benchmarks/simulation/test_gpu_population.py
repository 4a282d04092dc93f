"""The population benchmark on the CPU: everybody's round, as one by one."""

import pytest

from persephonee.benchmarks.personalisation_cost.training_macs import exits_training_macs, fast_macs
from persephonee.benchmarks.schedules import SCHEDULES
from persephonee.benchmarks.simulation.gpu_population import load_population, train_population
from persephonee.clients.personalisation.batched_personalise import BatchUser
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.building import build_network
from tests.tiny_cnn import NAME, SIDE, SOURCE, TinyUsers, write_parquet


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_user_batchs_give_everybody_s_own_accuracy_and_the_plan_s_arithmetic(schedule):
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    network.freeze_backbone()
    settings = PersonalisationSettings(schedule=schedule, epochs=3, batch_size=8)
    everyone = [TinyUsers(users=3, samples=30).load_partition(i) for i in range(3)]
    users = [BatchUser(samples=samples, split=split_samples(samples, SplitSettings(), 0)) for samples in everyone]
    found = train_population(network, users, settings, user_batch=2, seed=0)
    reports = [personalise(network, user.samples, user.split, settings).report for user in users]
    right = sum(r.num_test * (r.exit_metrics[3].accuracy + r.exit_metrics[4].accuracy) / 2 for r in reports)
    asked = sum(r.num_test for r in reports)
    assert found["users"] == 3
    # a batch of two users' samples rounds otherwise than a batch of one's
    assert found["accuracy"] == pytest.approx(right / asked, abs=1 / asked)
    trained = [len(user.split.train) for user in users]
    of_exits = {
        "paper": sum(trained) * 3 * exits_training_macs(network, (0, 1)),
        "fast": sum(fast_macs(network, (0, 1), count) for count in trained),
    }
    assert found["macs"] == 90 * network.costs.original_macs + of_exits[schedule]


@pytest.mark.slow
def test_a_population_is_loaded_by_several_processes(tmp_path):
    write_parquet(tmp_path / "users.parquet", users=4, samples=30)
    population = load_population(DataSettings(dataset="parquet", data_path=tmp_path / "users.parquet"), 3, 0, ("u00",))
    assert len(population) == 3
    assert all(len(user.samples) == 30 and user.samples.client_id != "u00" for user in population)
