"""The population benchmark on the CPU: everybody is trained and tested, as one by one."""

import copy

import pytest
import torch

from benchmarks.gpu_population import load_population, train_population
from benchmarks.schedules import SCHEDULES
from benchmarks.training_macs import backbone_macs, exits_training_macs
from clients.exit_training import train_exits
from clients.fast_training import embed, fit_classifiers
from clients.features import compute_features
from clients.settings import PersonalisationSettings
from data_partitions.opening import DataSettings
from data_partitions.user_splits import SplitSettings, split_samples
from multi_exit.building import build_network
from tests.tiny_cnn import NAME, SIDE, SOURCE, TinyUsers, write_parquet


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cohorts_give_everybody_s_own_exits(schedule):
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    network.freeze_backbone()
    settings = PersonalisationSettings(schedule=schedule, epochs=3, batch_size=8)
    users = TinyUsers(users=3, samples=30)
    everyone = [users.load_partition(i) for i in range(3)]
    population = [(samples, split_samples(samples, SplitSettings(), 0)) for samples in everyone]
    found = train_population(network, population, settings, "cpu", cohort=2, seed=0)
    right = asked = 0.0
    for samples, split in population:
        heads, features = copy.deepcopy(network.heads).requires_grad_(True), compute_features(network, samples.images)
        if schedule == "fast":
            rows = [rows[split.train] for rows in embed(heads, features)]
            of_train = features.last_logits[split.train], samples.labels[split.train]
            fit_classifiers(heads, rows, *of_train, settings.weights)
        else:
            train_exits(heads, features, samples.labels, split.train, settings, torch.Generator().manual_seed(0))
        for head, maps in zip(heads, features.maps, strict=True):
            right += float((head(maps[split.test]).argmax(dim=1) == samples.labels[split.test]).sum()) / 2
        asked += len(split.test)
    assert found["users"] == 3
    # a batch of two users' samples rounds otherwise than a batch of one's
    assert found["accuracy"] == pytest.approx(right / asked, abs=1 / asked)
    trained = sum(len(split.train) for _, split in population)
    if schedule == "paper":
        per_sample = backbone_macs(network, (0, 1)) + 3 * exits_training_macs(network, (0, 1))
        assert found["macs"] == trained * per_sample


@pytest.mark.slow
def test_a_population_is_loaded_by_several_processes(tmp_path):
    write_parquet(tmp_path / "users.parquet", users=4, samples=30)
    population = load_population(DataSettings(dataset="parquet", data_path=tmp_path / "users.parquet"), 3, 0, ("u00",))
    assert len(population) == 3
    assert all(len(samples) == 30 and samples.client_id != "u00" for samples, _ in population)
