import pyarrow.parquet as pq
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from persephonee.data_partitions.samples import to_float
from persephonee.data_partitions.user_splits import choose_users
from persephonee.experiments import forgetting
from persephonee.experiments.last_exit_baselines import fine_tuned, last_exit_baselines
from persephonee.experiments.studies.development import FIGURES_USERS, development_users
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.tiny_cnn import NAME, SIDE, SOURCE, write_parquet


def test_development_users_are_those_of_no_model_and_no_figure():
    everyone = [f"u{number:04d}" for number in range(1000)]
    trained_on = everyone[::7]
    chosen = development_users(everyone, trained_on, 50)
    assert len(set(chosen)) == 50
    assert not set(chosen) & set(trained_on)
    for shown in (40, FIGURES_USERS):
        assert not set(chosen) & set(choose_users(everyone, shown, 0, exclude=trained_on))


def test_the_baselines_answer_on_two_clusters_as_by_hand():
    rows = torch.tensor([[0.0, 1.0], [0.2, 1.0], [1.0, 0.0], [1.0, 0.2]])
    labels = torch.tensor([0, 0, 2, 2])
    classifier = nn.Linear(2, 3)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    before = classifier.weight.clone()
    points, logits = torch.tensor([[0.1, 0.9], [0.9, 0.1]]), torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    scores = last_exit_baselines(classifier, rows, torch.zeros(4, 3), labels)
    found = {name: score(points, logits) for name, score in scores.items()}
    assert torch.equal(classifier.weight, before)
    assert found["last exit"].argmax(dim=1).tolist() == [1, 0]
    assert found["last exit, refitted"].argmax(dim=1).tolist() == [0, 2]
    # the means are (0.1, 1) and (1, 0.1); class 1 has none
    assert found["nearest class mean"][0].tolist() == pytest.approx([-0.1, -torch.inf, -((0.9**2 + 0.8**2) ** 0.5)])
    # of probabilities that sum to 1 on either side
    assert found["kNN and last exit"].sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert found["kNN and last exit"][1].argmax() == 2


def test_a_network_that_is_fine_tuned_fits_its_user_and_leaves_the_global_model_alone():
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    before = network.fingerprint
    images = torch.zeros(32, 1, SIDE, SIDE, dtype=torch.uint8)
    images[16:] = 255
    labels = torch.arange(32) // 16
    whole = fine_tuned(network, images, labels, epochs=300)
    assert (whole(to_float(images)).argmax(dim=1) == labels).all()
    assert network.fingerprint == before


@pytest.mark.parametrize("labels", ["all", "none"])
def test_the_study_prints_what_is_forgotten_of_others_and_of_unknown_classes(tmp_path, labels):
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    save_network(network, tmp_path / "M", ModelMetadata())
    data = write_parquet(tmp_path / "users.parquet", users=8, samples=40)
    app = typer.Typer()
    app.command()(forgetting.main)
    words = [str(tmp_path / "M"), "--users", "3", "--dataset", "parquet", "--data-path", str(data), "--rule", "paper"]
    words += ["--fine-tune"]
    done = CliRunner().invoke(app, [*words, "--sources", SOURCE, "--schedule", "fast", "--labels", labels])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    names = ["before", "personal exits"]
    if labels == "all":
        names += ["last exit", "last exit, refitted", "nearest class mean", "kNN and last exit", "whole, fine-tuned"]
    rows = [line for line in lines if "|" in line][1:]
    assert [row[:22].strip() for row in rows] == names
    # a user of two classes knows both
    assert all(row[38:47].strip() == "nan" for row in rows)


def test_a_user_with_too_few_samples_is_left_out(tmp_path):
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    save_network(network, tmp_path / "M", ModelMetadata())
    data = write_parquet(tmp_path / "users.parquet", users=3, samples=40)
    pq.write_table(pq.read_table(data).slice(0, 2 * 40 + 12), data)
    app = typer.Typer()
    app.command()(forgetting.main)
    words = [str(tmp_path / "M"), "--users", "3", "--dataset", "parquet", "--data-path", str(data), "--rule", "paper"]
    done = CliRunner().invoke(app, [*words, "--sources", SOURCE, "--schedule", "fast"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("2 users")
