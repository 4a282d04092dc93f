"""The baselines train the same exits on the same samples, and everybody is run with the same users."""

import json
from dataclasses import asdict

import pytest
import torch

from persephonee.benchmarks.page.numbers import flower_fractions, rate_of, rates
from persephonee.benchmarks.result_tables import read_result
from persephonee.benchmarks.simulation import baselines as who
from persephonee.benchmarks.simulation import benchmark as simulation
from persephonee.benchmarks.simulation.baselines import FLOWER, OURS, PFL, Baseline, baselines, run_baseline
from persephonee.benchmarks.simulation.plain_flower import task
from persephonee.benchmarks.simulation.plain_flower.task import TaskSettings
from persephonee.benchmarks.simulation.plain_loop import loop, run_fraction
from persephonee.benchmarks.users import CommandFailed, run_command
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import to_float
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.experiments.studies import smoke_network
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network

SOURCE = smoke_network.__name__
DATA = DataSettings(num_writers=6)


@pytest.fixture
def settings(tmp_path) -> TaskSettings:
    name = f"{SOURCE}:build"
    network = build_network(name, num_exits=2, num_classes=62, input_size=28, head="pooled", allowed=(SOURCE,))
    save_network(network, tmp_path / "model", ModelMetadata())
    users = open_partitions(DATA).client_ids[:4]
    model = str(tmp_path / "model")
    return TaskSettings(model=model, sources=(SOURCE,), data=DATA.to_flat(), users=users, epochs=1)


@pytest.fixture
def path(settings, tmp_path) -> str:
    (tmp_path / "settings.json").write_text(json.dumps(asdict(settings)))
    return str(tmp_path / "settings.json")


def test_settings_travel_as_json(settings, path):
    assert task.read_settings(path) == settings


def test_an_opponent_has_the_samples_that_we_train_and_test_on(settings, path):
    user = settings.users[1]
    train, test = task.load_data(path, user)
    samples = open_partitions(DATA).load_partition(1)
    split = split_samples(samples, SplitSettings(), settings.seed)
    assert torch.equal(train.dataset.tensors[0], to_float(samples.images[split.train]))
    assert torch.equal(test.dataset.tensors[1], torch.from_numpy(samples.labels[split.test]))
    assert train.batch_size == 32


def test_an_opponent_trains_the_exits_and_nothing_else(settings, path):
    network = task.load_model(settings.model, settings.sources)
    train, test = task.load_data(path, settings.users[0])
    backbone, exits = network.backbone_fingerprint, network.exit_state()
    task.train(network, train, settings)
    assert network.backbone_fingerprint == backbone
    assert not torch.equal(network.exit_state()["heads.0.classifier.weight"], exits["heads.0.classifier.weight"])
    accuracies = task.test(network, test)
    images, labels = test.dataset.tensors
    with torch.no_grad():
        expected = [float((logits.argmax(dim=1) == labels).float().mean()) for logits in network(images)[:-1]]
    assert accuracies == pytest.approx(expected)


def test_the_plain_loop_counts_right_answers_over_all_test_samples(path):
    share = run_fraction(path, "paper")
    assert 0 <= share["right"] <= share["asked"]
    partitions = open_partitions(DATA)
    tests = [split_samples(partitions.load_partition(i), SplitSettings(), 0).test for i in range(4)]
    assert share["asked"] == sum(map(len, tests))
    assert share["seconds"] > 0


def test_opponents_run_between_ours_in_every_repetition(monkeypatch):
    monkeypatch.setattr(who, "has_pfl", lambda folder: True)
    names = [baseline.name for baseline in baselines(None)]
    assert names[:2] == [OURS, FLOWER]
    assert PFL in names
    sizes = {"ours": 8, "baselines": 4, "few": 2, "many": 0}
    planned = list(simulation._plan(sizes, repeats=2, pfl=None))
    assert [baseline.name for kind, repeat, baseline, _ in planned if (kind, repeat) == ("rate", 1)] == names
    assert {count for kind, _, baseline, count in planned if kind == "rate" and baseline.name != OURS} == {4}
    assert {count for kind, *_, count in planned if kind == "few"} == {2}
    assert not any(kind == "many" for kind, *_ in planned)


def test_pfl_is_found_in_its_folder(tmp_path):
    if not who.has_pfl(None):
        assert not who.has_pfl(tmp_path)
    (tmp_path / "pfl").mkdir()
    assert who.has_pfl(tmp_path)
    printed = run_command(["python3", "-c", "import sys; print(sys.path[1])"], packages=tmp_path)
    assert printed.strip() == str(tmp_path)


def test_a_command_that_fails_says_why():
    with pytest.raises(CommandFailed, match="no such thing"):
        run_command(["python3", "-c", "raise SystemExit('no such thing')"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [OURS, FLOWER, PFL])
def test_a_baseline_simulates_the_users_and_says_how_well(name, settings, tmp_path):
    if name == PFL:
        pytest.importorskip("pfl", reason="pfl-research is not installed")
    row = run_baseline(Baseline(name=name), settings, tmp_path / "run", cores=2)
    assert row["clients"] == 4
    assert row["seconds"] > 0
    assert 0 <= row["accuracy"] <= 1


@pytest.mark.slow
def test_the_loop_shares_the_users_among_the_cores(settings, tmp_path):
    both = loop(settings, "paper", 2, tmp_path)
    (tmp_path / "one").mkdir()
    assert loop(settings, "paper", 1, tmp_path / "one")["accuracy"] == pytest.approx(both["accuracy"])


def test_users_too_small_to_take_part_are_left_out_as_the_run_leaves_them_out():
    class Sizes:
        client_ids = ("a", "b", "c")
        counts = (19, 20, 300)

    assert simulation._users(Sizes(), 3, 0, ()) == ("b", "c")
    assert simulation._users(Sizes(), 2, 0, ("c",)) == ("b",)


def test_a_run_s_rows_become_rates_and_flower_s_fraction(settings, tmp_path, monkeypatch):
    def contend(baseline, chosen, folder, cores, pfl):
        speed = 10.0 if baseline.name == OURS else 2.0
        seconds = 5 + len(chosen.users) / speed
        row = {"clients": len(chosen.users), "seconds": seconds, "accuracy": 0.5}
        return {**asdict(baseline), **row, **({"round_seconds": seconds - 4} if baseline.name == OURS else {})}

    monkeypatch.setattr(simulation, "run_baseline", contend)
    monkeypatch.setattr(simulation, "loop", lambda chosen, *_: {"seconds": len(chosen.users) / 10, "accuracy": 0.5})
    monkeypatch.setattr(simulation, "SOURCES", (SOURCE,))
    options = {name: p.default for name, p in simulation.main.__signature__.parameters.items()}
    model = tmp_path / "model"
    sizes = {"clients": 4, "opponents_clients": 4, "many_clients": 5, "few": 2, "num_writers": 6}
    simulation.main(**{**options, **sizes, "model": model, "pooled_model": model, "out": tmp_path})
    result = read_result(tmp_path, "simulation")
    assert result is not None
    table = rates(result)
    assert set(table[table.kind == "many"]["head"]) == {"msdnet"}
    for name, speed in ((OURS, 10.0), (FLOWER, 2.0)):
        assert rate_of(result, name, "paper") == pytest.approx(speed)
    # rounds of 1.4 s against loops of 0.4 s
    assert list(flower_fractions(result).share) == pytest.approx([1 - 0.4 / 1.4] * 2)
