import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.experiments.meta_learning import experiment as meta_learning
from persephonee.experiments.meta_learning.experiment import held_out_users, load_starts, summarise
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network


def network_of(seed: int):
    return build_network("squeezenet1_1", num_exits=2, num_classes=62, input_size=28, head="pooled", seed=seed)


def with_other_exits(folder, name: str, metadata: ModelMetadata):
    network = network_of(0)
    network.load_exit_state(network_of(1).exit_state())
    save_network(network, folder / name, metadata)
    return folder / name


def test_means_and_paired_gains_are_those_worked_out_by_hand():
    values = {("pretrained", "a"): 0.5, ("pretrained", "b"): 0.7, ("reptile", "a"): 0.6, ("reptile", "b"): 1.0}
    rows = [
        {"user": user, "start": start, "samples": "all", "epochs": 1, "exit": 0, "accuracy": accuracy}
        for (start, user), accuracy in values.items()
    ]
    means = summarise(pd.DataFrame(rows)).set_index("start")
    assert means.accuracy.tolist() == pytest.approx([0.6, 0.8])
    # gains of 0.1 and 0.3: their mean, and their standard deviation of 0.1414 over the root of 2
    assert means.gain.tolist() == pytest.approx([0.0, 0.2])
    assert means.gain_se.tolist() == pytest.approx([0.0, 0.1])
    assert means.users.tolist() == [2, 2]


def test_nobody_whom_a_model_or_a_run_has_seen_is_judged_on(tmp_path):
    save_network(network_of(0), tmp_path / "model", ModelMetadata(trained_on=("s0w0000",)))
    run = tmp_path / "run"
    run.mkdir()
    pd.DataFrame({"client_id": ["s0w0001"]}).to_parquet(run / "clients.parquet")
    with_other_exits(run, "model", ModelMetadata(trained_on=("s0w0002",)))
    _, starts, seen = load_starts(tmp_path / "model", {"shared": run / "model", "missing": tmp_path / "nowhere"})
    assert list(starts) == ["pretrained", "shared"]
    assert seen == {"s0w0000", "s0w0001", "s0w0002"}
    users = held_out_users(open_partitions(DataSettings(num_writers=8)), seen, 20)
    assert {samples.client_id for samples, _ in users} <= {f"s0w000{number}" for number in range(3, 8)}
    assert all(len(split.train) >= 50 for _, split in users)


def test_another_backbone_is_refused(tmp_path):
    save_network(network_of(0), tmp_path / "model", ModelMetadata())
    save_network(network_of(1), tmp_path / "other", ModelMetadata())
    with pytest.raises(ValueError, match="has another backbone"):
        load_starts(tmp_path / "model", {"other": tmp_path / "other"})


def test_the_study_runs_from_models_to_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(meta_learning, "SAMPLES", (10,))
    monkeypatch.setattr(meta_learning, "EPOCHS", (1,))
    save_network(network_of(0), tmp_path / "model", ModelMetadata(trained_on=("s0w0000",)))
    reptile = with_other_exits(tmp_path, "reptile", ModelMetadata(trained_on=("s0w0000",)))
    app = typer.Typer()
    app.command()(meta_learning.main)
    words = ["--model", tmp_path / "model", "--start", f"reptile={reptile}", "--out", tmp_path / "out", "--users", 2]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    means = pd.read_csv(tmp_path / "out" / "meta-learning-synthetic-writers.csv")
    # both starts, no epoch on all samples and one on ten and on all, three exits
    assert len(means) == 2 * 3 * 3
    last = means[means.exit == 2]
    assert (last.gain == 0).all()
    assert (tmp_path / "out" / "meta-learning-synthetic-writers.svg").stat().st_size > 10_000
    assert "| all | 1 |" in result.stdout
