"""The ways to personalise that are compared do the same work, and their arithmetic is what paper and pencil give."""

import copy
import math
import os
from dataclasses import replace

import pytest
import torch

from persephonee.benchmarks.machine import forget_peak, matrix_macs_per_second, peak_resident_bytes
from persephonee.benchmarks.personalisation_cost.benchmark import methods
from persephonee.benchmarks.personalisation_cost.methods import WAYS, Task, only_early
from persephonee.benchmarks.personalisation_cost.one_method import MethodSettings, from_json, measure_way, to_json
from persephonee.benchmarks.personalisation_cost.training_macs import (
    backbone_macs,
    exits_training_macs,
    head_training_macs,
    whole_training_macs,
)
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.training.linear_fit import STEPS
from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.heads import MSDNetHead, PooledHead
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.tiny_cnn import NAME, SIDE, SOURCE, TinyUsers, write_parquet


@pytest.fixture
def task():
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    samples = TinyUsers().load_partition(0)
    return Task(
        network=network.freeze_backbone(),
        exits=(0, 1),
        images=torch.from_numpy(samples.images),
        labels=torch.from_numpy(samples.labels),
        settings=PersonalisationSettings(epochs=2, batch_size=8),
    )


def test_the_paper_s_way_and_cached_features_end_with_the_same_exits(task):
    other = replace(task, network=copy.deepcopy(task.network))
    before = task.network.exit_state()
    WAYS["paper"](task)
    WAYS["cached"](other)
    for name, tensor in task.network.exit_state().items():
        torch.testing.assert_close(tensor, other.network.exit_state()[name])
    assert not torch.equal(task.network.exit_state()["heads.0.classifier.weight"], before["heads.0.classifier.weight"])


@pytest.mark.parametrize("exits", [(0,), (0, 1)])
def test_a_network_that_ends_early_trains_the_same_exits(task, exits):
    early = only_early(task.network, exits)
    assert list(early.heads) == [task.network.heads[i] for i in exits]
    images = to_float(task.images[:3])
    with torch.no_grad():
        wanted, _ = task.network.features(images)
        found, logits = early.features(images)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=False))
    assert (len(found), logits.shape) == (len(exits), (3, 2))
    before = task.network.exit_state()
    WAYS["fast"](replace(task, exits=exits))
    after = task.network.exit_state()
    names = {i: f"heads.{i}.classifier.weight" for i in (0, 1)}
    assert {i for i, name in names.items() if not torch.equal(after[name], before[name])} == set(exits)


def test_a_memory_budget_changes_no_exit(task):
    other = replace(task, network=copy.deepcopy(task.network), memory_budget=50_000_000)
    WAYS["cached"](task)
    WAYS["cached"](other)
    for name, tensor in task.network.exit_state().items():
        torch.testing.assert_close(tensor, other.network.exit_state()[name])


def test_only_full_fine_tuning_moves_the_backbone(task):
    before = task.network.backbone_fingerprint
    for method in ("paper", "cached", "fast"):
        WAYS[method](task)
        assert task.network.backbone_fingerprint == before
    WAYS["whole"](task)
    assert task.network.backbone_fingerprint != before


def test_a_schedule_is_scaled_from_the_steps_that_were_timed(task):
    cost = WAYS["paper"](replace(task, steps=1))
    assert (cost.steps, cost.passes, cost.trained) == (1, 2 * 24, ())
    assert cost.seconds > 0
    assert WAYS["paper"](task).trained == (0, 1)


def test_arithmetic_is_what_the_layers_say():
    # with cached maps the first convolution needs no gradient of its input: 2 x instead of 3 x
    head = MSDNetHead((16, 8, 8), num_classes=10)
    first, second, linear = 16 * 128 * 9 * 4 * 4, 128 * 128 * 9 * 2 * 2, 128 * 10
    assert head_training_macs(head, (16, 8, 8)) == 2 * first + 3 * second + 3 * linear
    pooled = PooledHead((16, 8, 8), num_classes=10)
    assert head_training_macs(pooled, (16, 8, 8)) == 3 * 16 * 4 * 4 * 10


def test_a_plan_s_arithmetic_adds_up(task):
    network = task.network
    heads = [head_training_macs(h, s) for h, s in zip(network.heads, network.feature_shapes, strict=True)]
    assert exits_training_macs(network, (0, 1)) == sum(heads)
    assert backbone_macs(network, (0,)) == network.costs.exit_costs[0].macs
    assert WAYS["whole"](task).macs == 2 * 24 * 3 * network.costs.original_macs == 48 * whole_training_macs(network)
    assert WAYS["paper"](task).macs == 48 * (network.costs.exit_costs[1].macs + sum(heads))
    # pooled to at most 4 x 4, and a 1 for the bias; 2 classes, 24 samples
    taken = [math.prod((c, min(4, h), min(4, w))) + 1 for c, h, w in network.feature_shapes]
    pairs = sum(24**2 * d + 24**3 + 2 * 24 * d * 2 + STEPS * 2 * 24**2 * 2 for d in taken)
    forward = sum(row.head_macs for row in network.costs.exit_costs[:2])
    assert WAYS["fast"](task).macs == 24 * (network.costs.exit_costs[1].macs + forward) + pairs
    assert WAYS["cached"](task).macs == 24 * network.costs.exit_costs[1].macs + 48 * sum(heads)


def test_the_rate_of_a_matrix_product_and_the_peak_are_measured():
    assert matrix_macs_per_second(side=64) > 1e6
    forget_peak()
    before = peak_resident_bytes()
    block = torch.ones(25_000_000)
    assert peak_resident_bytes() >= before + 80_000_000
    assert peak_resident_bytes(os.getpid()) >= before + 80_000_000
    del block
    forget_peak()
    assert peak_resident_bytes() < before + 50_000_000


@pytest.fixture
def settings(task, tmp_path):
    save_network(task.network, tmp_path / "model", ModelMetadata())
    write_parquet(tmp_path / "users.parquet", users=3, samples=40)
    return MethodSettings(
        method="cached",
        only_first=True,
        model=str(tmp_path / "model"),
        sources=(SOURCE,),
        data={"dataset": "parquet", "data_path": str(tmp_path / "users.parquet")},
        users=("u00", "u01"),
        threads=1,
        epochs=1,
        batch_size=8,
        max_train=10,
        max_test=5,
        steps=None,
        seed=0,
    )


def test_a_process_measures_a_row_for_each_user(settings):
    rows = measure_way(from_json(to_json(settings)))
    assert [row["user"] for row in rows] == ["u00", "u01"]
    assert all(row["num_train"] == 10 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert all(row["peak_bytes"] > row["own_bytes"] >= 0 and row["float32_rate"] > 0 for row in rows)


def test_every_way_is_measured_for_exit_0_and_for_all_and_only_long_ones_are_cut_short(settings):
    planned = {(method.method, method.only_first): method.steps for method in methods(settings, steps=3)}
    assert planned == {
        ("whole", False): 3,
        ("paper", True): 3,
        ("paper", False): 3,
        ("cached", True): None,
        ("cached", False): None,
        ("fast", True): None,
        ("fast", False): None,
    }
