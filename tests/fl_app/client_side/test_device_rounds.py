"""Whole runs with devices that have data, stores and permissions of their own."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from persephonee.fl_app.client_side import client_app
from persephonee.fl_app.errors import RunFailedError
from persephonee.fl_app.wire import model_store
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from tests.fl_app.whole_runs import changed, run, with_status

pytestmark = pytest.mark.usefixtures("draw_nothing")


def test_a_device_opens_its_own_data_whatever_the_server_says(settings, device_node, make_grid):
    elsewhere = changed(settings, data_path="/nowhere/at/all.parquet", client_store="/nowhere")
    node = device_node("u2", 1)
    status = with_status(run(make_grid([node], elsewhere), elsewhere))
    assert status.to_dict() == {"u2": "ok"}


@pytest.mark.parametrize("other", [{"seed": 1}, {"test_fraction": 0.5}, {"test_samples": 20, "test_samples_from": 21}])
def test_a_later_run_does_not_test_a_device_on_what_trained_it_in_an_earlier_one(
    settings, device_node, make_grid, monkeypatch, tmp_path, other
):
    rounds, personalise = [], client_app.personalise

    def noted(network, samples, split, *rest, **more):
        rounds.append(split)
        return personalise(network, samples, split, *rest, **more)

    monkeypatch.setattr(client_app, "personalise", noted)
    node = device_node("u2", 1)
    run(make_grid([node], settings), settings)
    later = changed(settings, run_dir=str(tmp_path / "later"), rounds=2, **other)
    assert set(with_status(run(make_grid([node], later), later))) == {"ok"}
    first, *later_rounds = rounds
    assert len(later_rounds) == 2
    for split in later_rounds:
        assert split.train.tolist() == first.train.tolist()
        assert split.calibration.tolist() == first.calibration.tolist()
        assert split.test.tolist() == first.test.tolist()


@pytest.fixture
def own_data(tmp_path):
    """Return a function that writes 40 samples of the user ada, with the label that it is given on all of them."""

    def write(label: int | str) -> str:
        images = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8).tolist()
        table = pa.table({"image": images, "writer_id": ["ada"] * 40, "character": [label] * 40})
        pq.write_table(table, tmp_path / "mine.parquet")
        return str(tmp_path / "mine.parquet")

    return write


def test_a_device_without_labels_takes_part_with_any_number_in_the_column(settings, device_node, make_grid, own_data):
    settings = changed(settings, labels="none")
    node = device_node("ada", 1, **{"data-path": own_data(0)})
    assert with_status(run(make_grid([node], settings), settings)).to_dict() == {"ada": "ok"}


def test_a_device_numbers_words_by_the_class_names_that_came_with_the_model(
    settings, device_node, make_grid, own_data, caplog
):
    node = device_node("ada", 1, **{"data-path": own_data("c")})
    with pytest.raises(RunFailedError, match="a label of the client's data is out of range"):
        run(make_grid([node], settings), settings)
    assert "the model has no class names" in caplog.text
    network, _ = load_network(settings.paths.model, settings.sources)
    named = settings.paths.model.parent / "named"
    save_network(network, named, ModelMetadata(class_names=("a", "b", "c")))
    again = changed(settings, model=str(named), run_dir=str(named.parent / "again"))
    # the device holds this model without its names
    shutil.rmtree(node.node_config["store"])
    model_store._IN_MEMORY.clear()
    assert with_status(run(make_grid([node], again), again)).to_dict() == {"ada": "ok"}
    (_, metadata), *_ = model_store._IN_MEMORY.values()
    assert metadata == ModelMetadata(class_names=("a", "b", "c"))


def test_a_device_builds_only_backbones_that_it_allows(settings, device_node, make_grid):
    nodes = [device_node("u0", 1), device_node("u1", 2, backbones="torchvision")]
    status = with_status(run(make_grid(nodes, settings), settings))
    assert status["u0"] == "ok"
    assert status["u1"].startswith("refused: backbone ")


def test_a_device_computes_on_what_its_own_configuration_says_whatever_the_server_says(
    settings, device_node, make_grid, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = changed(settings, device="cuda", min_reply_fraction=0.0)
    nodes = [device_node("u0", 1), device_node("u1", 2, device="cuda"), device_node("u2", 3, device="toaster")]
    status = with_status(run(make_grid(nodes, asked), asked))
    assert status["u0"] == "ok"
    assert status["u1"].startswith("refused: the client is told to compute on a GPU and has none")
    assert "u2" not in status
