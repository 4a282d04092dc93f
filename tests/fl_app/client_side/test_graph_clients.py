"""A SuperNode without PyTorch beside one with it: the same figures, the same exits, and what is refused."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from persephonee.fl_app.server_side.server_app import serve
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.wire import model_store
from persephonee.multi_exit.graphs.description import graphs_fingerprint
from persephonee.multi_exit.graphs.network import GraphNetwork
from persephonee.multi_exit.graphs.writing import write_graphs
from persephonee.multi_exit.storage import load_network, read_description
from tests.exchanged_graphs import exchange_a_graph
from tests.fl_app.conftest import save_model
from tests.tiny_cnn import SOURCE

pytestmark = pytest.mark.usefixtures("on_real_devices", "draw_nothing")


@pytest.fixture(scope="module")
def model_with_graphs(tmp_path_factory) -> Path:
    """The model of these tests with its graphs, which take seconds to write."""
    folder = save_model(tmp_path_factory.mktemp("graphs") / "model")
    write_graphs(load_network(folder, (SOURCE,))[0], folder)
    return folder


@pytest.fixture
def fast(settings, model_with_graphs) -> AppSettings:
    shutil.copytree(model_with_graphs, settings.paths.model, dirs_exist_ok=True)
    return AppSettings.from_run_config({**settings.to_run_config(), "schedule": "fast", "node-wait": 0.5})


def run(grid, settings):
    serve(grid, settings, settings.paths.model, settings.paths.run_dir)
    return pd.read_parquet(settings.paths.run_dir / "clients.parquet").set_index("client_id")


def test_a_client_on_graphs_is_sent_the_graphs_and_reports_what_pytorch_reports(fast, device_node, make_grid, tmp_path):
    on_graphs = run(make_grid([device_node("u0", 1, runtime="onnx")], fast), fast)
    loaded = next(iter(model_store._IN_MEMORY.values()))[0]
    assert isinstance(loaded, GraphNetwork)
    (folder,) = (tmp_path / "device-1" / "models").iterdir()
    assert read_description(folder)["graphs"] == read_description(fast.paths.model)["graphs"]
    node = device_node("u0", 2)
    # the same division of the samples: a device's seed is its own
    seed = json.loads((tmp_path / "device-1" / "asked.json").read_text())["seed"]
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("persephonee.fl_app.client_side.asked.secrets.randbelow", lambda _: seed)
        again = AppSettings.from_run_config({**fast.to_run_config(), "run-dir": str(tmp_path / "torch")})
        on_torch = run(make_grid([node], again), again)
    assert list(on_graphs.status) == list(on_torch.status) == ["ok"]
    for name in ("accuracy_original", "accuracy_before", "accuracy_after", "mean_macs", "threshold", "num_test"):
        assert on_graphs[name].iloc[0] == pytest.approx(on_torch[name].iloc[0], abs=1e-4)
    # the model with its graphs goes down once, and figures alone come up
    assert on_graphs.bytes_up.iloc[0] < 4096


def test_exits_of_a_client_on_graphs_are_merged_with_those_of_pytorch(fast, device_node, make_grid, tmp_path):
    sharing = AppSettings.from_run_config({**fast.to_run_config(), "share-exits": True, "rounds": 2})
    shares = {"share-exits": True}
    names = (("u0", {"runtime": "onnx"}), ("u1", {}), ("u2", {}))
    nodes = [device_node(name, i, **own, **shares) for i, (name, own) in enumerate(names, start=1)]
    assert set(run(make_grid(nodes, sharing), sharing).status) == {"ok"}
    merged, _ = load_network(sharing.paths.run_dir / "model", sharing.sources)
    before, _ = load_network(sharing.paths.model, sharing.sources)
    assert merged.backbone_fingerprint == before.backbone_fingerprint


def test_the_papers_schedule_is_refused_in_a_sentence(fast, device_node, make_grid):
    paper = AppSettings.from_run_config({**fast.to_run_config(), "schedule": "paper", "min-reply-fraction": 0.0})
    nodes = [device_node("u0", 1, runtime="onnx"), device_node("u1", 2)]
    status = run(make_grid(nodes, paper), paper).status
    assert status["u1"] == "ok"
    assert "schedule that needs PyTorch" in status["u0"]


def test_a_model_without_graphs_is_refused_in_a_sentence(settings, device_node, make_grid):
    fast = AppSettings.from_run_config({**settings.to_run_config(), "schedule": "fast"})
    status = run(make_grid([device_node("u0", 1, runtime="onnx"), device_node("u1", 2)], fast), fast).status
    assert status["u1"] == "ok"
    assert "carries no graphs" in status["u0"]


def again(fast, tmp_path, name, **more) -> AppSettings:
    return AppSettings.from_run_config({**fast.to_run_config(), "run-dir": str(tmp_path / name), **more})


def test_a_device_answers_for_the_first_graphs_of_a_model_and_for_others_if_its_owner_names_them(
    fast, device_node, make_grid, tmp_path
):
    own, any_graphs = device_node("u0", 1, runtime="onnx"), device_node("u1", 2)
    assert set(run(make_grid([own, any_graphs], fast), fast).status) == {"ok"}
    first = graphs_fingerprint(fast.paths.model)
    exchange_a_graph(fast.paths.model)
    second = graphs_fingerprint(fast.paths.model)
    exchanged = again(fast, tmp_path, "exchanged", **{"min-reply-fraction": 0.0})
    status = run(make_grid([own, any_graphs], exchanged), exchanged).status
    assert status["u1"] == "ok"
    assert f"answers for the graphs {first[:12]} of this model, not for {second[:12]}" in status["u0"]
    # both are there, and the first are still what it answers for
    assert {path.name for path in (tmp_path / "device-1" / "models").iterdir()} == {first, second}
    named = device_node("u2", 3, runtime="onnx", models=second)
    taken = again(fast, tmp_path, "named")
    assert run(make_grid([named], taken), taken).status["u2"] == "ok"


def test_graphs_that_the_request_does_not_name_are_refused(fast, device_node, make_grid, monkeypatch):
    monkeypatch.setattr("persephonee.fl_app.server_side.run_rounds.graphs_fingerprint", lambda folder: "0" * 64)
    status = run(make_grid([device_node("u0", 1, runtime="onnx"), device_node("u1", 2)], fast), fast).status
    assert status["u1"] == "ok"
    assert "not those that the request names" in status["u0"]


def test_graphs_of_another_digest_are_refused(fast, device_node, make_grid, monkeypatch):
    from persephonee.fl_app.server_side import run_rounds

    honest = run_rounds.graph_records

    def swapped(folder, num_exits):
        records = honest(folder, num_exits)
        files = records["graph-files"]
        first, second, *_ = files
        files[first], files[second] = files[second], files[first]
        return records

    monkeypatch.setattr(run_rounds, "graph_records", swapped)
    status = run(make_grid([device_node("u0", 1, runtime="onnx"), device_node("u1", 2)], fast), fast).status
    assert status["u1"] == "ok"
    assert "digest" in status["u0"]
