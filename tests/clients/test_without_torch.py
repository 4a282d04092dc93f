"""A device without PyTorch: the same rounds on the graphs that a model carries, in a process that cannot import it."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError, StoreError
from persephonee.clients.inference.engines import engine_for
from persephonee.clients.inference.onnx_engine import OnnxEngine
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.profiler import profile_exits
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.checked_json import read_with_digest, write_with_digest
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_weights import as_arrays
from persephonee.multi_exit.graphs.network import GraphNetwork, load_graph_network
from persephonee.multi_exit.graphs.writing import write_graphs
from persephonee.multi_exit.storage import ModelMetadata, read_description, save_network
from tests.exchanged_graphs import exchange_a_graph

REPOSITORY = Path(__file__).resolve().parents[2]
FAST = PersonalisationSettings(schedule="fast")

ABSENT = ("torch", "torchvision", "pandas", "pyarrow", "onnx", "onnxscript", "scipy", "flwr", "matplotlib")


def with_other_graphs(folder: Path) -> GraphNetwork:
    """Exchange a graph for one that differs in a word, as another version of the exporter might write it."""
    exchange_a_graph(folder)
    return load_graph_network(folder, threads=1)[0]


def numbers(report) -> dict:
    values = {k: v for k, v in asdict(report).items() if k != "seconds_personalise"}
    return json.loads(json.dumps(values))


def assert_same(ours, theirs, path=""):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{path}[{number}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-3), path
    else:
        assert ours == theirs, path


@pytest.mark.parametrize("labels", [1.0, 0.3, 0.0])
def test_a_round_on_graphs_reports_what_pytorch_reports(graphs, calibrated, draw_user, labels, tmp_path):
    user = draw_user(n=160)
    user = replace(user, images=user.images[user.labels < 3], labels=user.labels[user.labels < 3])
    split = split_samples(user, SplitSettings(labels=labels), seed=0)
    settings = replace(FAST, weights=loss_weights("auto", labels))
    stores = ExitStore(tmp_path / "graphs"), ExitStore(tmp_path / "torch")
    for number in (1, 2):
        ours = personalise(graphs, user, split, settings, store=stores[0], round_number=number)
        theirs = personalise(calibrated, user, split, settings, store=stores[1], round_number=number)
        assert_same(numbers(ours.report), numbers(theirs.report))
        assert ours.policy == theirs.policy
        for name, array in theirs.exit_weights.items():
            np.testing.assert_allclose(ours.exit_weights[name], array, atol=1e-3, rtol=1e-3)


def test_exits_move_between_graphs_and_pytorch_and_answer_alike(graphs, calibrated, user, split, tmp_path):
    done = personalise(graphs, user, split, FAST, store=ExitStore(tmp_path))
    stored = ExitStore(tmp_path).load(calibrated.backbone_fingerprint, calibrated.exit_state(), user.client_id)
    for one in (graphs, calibrated):
        one.load_exit_state(stored.exit_weights)
    ours, theirs = (engine_for(one, done.policy, last_shift=stored.last_shift) for one in (graphs, calibrated))
    np.testing.assert_allclose(ours.explore(user.images).logits, theirs.explore(user.images).logits, atol=1e-3)
    for size in (1, 20):
        assert (ours.infer(user.images[:size]).labels == theirs.infer(user.images[:size]).labels).all()
    # a stage without an exit in use is passed without its head
    alone = replace(done.policy, exits_in_use=(1,), threshold=0.5)
    ours, theirs = (engine_for(one, alone) for one in (graphs, calibrated))
    assert (ours.infer(user.images).exit_indices == theirs.infer(user.images).exit_indices).mean() > 0.98


def test_a_store_belongs_to_the_graphs_that_its_round_ran_on_and_torch_takes_it_up(
    graphs, calibrated, _written, user, split, tmp_path
):
    store = ExitStore(tmp_path / "store")
    personalise(graphs, user, split, FAST, store=store)
    others = with_other_graphs(shutil.copytree(_written, tmp_path / "model"))
    assert (others.fingerprint, others.backbone_fingerprint) == (graphs.fingerprint, graphs.backbone_fingerprint)
    assert others.graphs_fingerprint != graphs.graphs_fingerprint
    with pytest.raises(StoreError, match=r"made on other graphs .*--runtime torch"):
        personalise(others, user, split, FAST, store=store, round_number=2)
    personalise(graphs, user, split, FAST, store=store, round_number=2)
    personalise(calibrated, user, split, FAST, store=store, round_number=3)
    # what PyTorch has made is of the weights, on whatever graphs it goes on
    personalise(others, user, split, FAST, store=store, round_number=4)


def test_a_store_of_an_earlier_version_knows_no_graphs_and_is_taken_up(graphs, user, split, tmp_path):
    store = ExitStore(tmp_path)
    personalise(graphs, user, split, FAST, store=store)
    state = read_with_digest(tmp_path / "state.json")
    del state["graphs_fingerprint"]
    write_with_digest(tmp_path / "state.json", state)
    assert personalise(graphs, user, split, FAST, store=ExitStore(tmp_path), round_number=2).report.status == "ok"


def test_a_backbone_whose_fingerprint_is_another_than_the_weights_is_refused(_written, tmp_path):
    folder = shutil.copytree(_written, tmp_path / "model")
    write_with_digest(folder / "network.json", {**read_description(folder), "backbone_fingerprint": "0" * 64})
    with pytest.raises(ModelFileError, match="not those that network"):
        load_graph_network(folder)


def test_exits_whose_convolutions_were_trained_are_refused_by_graphs(graphs, calibrated, user, split, tmp_path):
    personalise(calibrated, user, split, PersonalisationSettings(epochs=1, use_prior=False), store=ExitStore(tmp_path))
    calibrated.heads[0].blend.data.add_(1.0)
    with pytest.raises(ModelFileError, match="were trained"):
        graphs.load_exit_state(as_arrays(calibrated.exit_state()))
    moved = {name: array + (name == "heads.0.blend") for name, array in as_arrays(calibrated.exit_state()).items()}
    with pytest.raises(StoreError, match="PyTorch"):
        personalise(graphs, user, split, FAST, global_exit_weights=moved)


def test_the_papers_schedule_says_that_it_needs_pytorch(graphs, user, split):
    with pytest.raises(ClientSettingsError, match="--schedule fast"):
        personalise(graphs, user, split, PersonalisationSettings())


def test_the_profiler_measures_graphs(graphs, user):
    profile = profile_exits(graphs, graphs.exit_state(), user.images[:20], user.labels[:20])
    assert all(row.stage_ms > 0 and row.head_ms >= 0 for row in profile.exits)
    assert profile.exits[-1].latency_ms > profile.exits[0].stage_ms
    assert profile.threads == 1


def test_a_graph_that_was_changed_is_refused(graphs, _written, user, tmp_path):
    folder = shutil.copytree(_written, tmp_path / "model")
    path = folder / graphs.graphs.stages[1].file
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    network, _ = load_graph_network(folder)
    with pytest.raises(ModelFileError, match="is not the graph"):
        network.embed(user.images)
    path.unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_graph_network(folder)[0].embed(user.images)


def call(*words: object, absent: tuple[str, ...] = ABSENT) -> subprocess.CompletedProcess:
    hide = f"import sys; sys.modules.update(dict.fromkeys({absent}))"
    return subprocess.run(
        [sys.executable, "-c", f"{hide}\nfrom persephonee.commands.application import main\nmain()", *map(str, words)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_verbs_of_a_device_run_where_torch_pandas_and_pyarrow_cannot_be_imported(_written_for_writers, tmp_path):
    data = ("--dataset", "synthetic-writers", "--num-writers", 4, "--user", "s0w0001")
    fast = ("--model", _written_for_writers, "--schedule", "fast", "--store")
    done = call("personalise", *fast, tmp_path / "own", *data, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["round"] == 1
    life = ("--power", "always", "--min-new-samples", 30, "--min-calibration", 5, "--every", 1, "--quiet")
    done = call("device", "run", *fast, tmp_path / "life", *data, *life)
    assert done.returncode == 0, done.stderr
    assert "round done" in done.stdout
    status = call("device", "status", "--store", tmp_path / "life", "--json")
    assert json.loads(status.stdout)["rounds"] >= 1
    refused = call("personalise", "--model", _written_for_writers, "--store", tmp_path / "paper", *data)
    assert refused.returncode == 2
    assert "needs PyTorch" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_device_exports_without_torch_and_says_which_extra_it_needs(_written_for_writers, tmp_path):
    fast = ("--model", _written_for_writers, "--store", tmp_path / "own")
    data = ("--dataset", "synthetic-writers", "--num-writers", 4, "--user", "s0w0001", "--schedule", "fast")
    assert call("personalise", *fast, *data).returncode == 0
    refused = call("export", *fast, "--out", tmp_path / "onnx")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        'Error: this needs the package onnx, which is not installed: install it with pip install "persephonee[export]".'
    ]
    done = call("export", *fast, "--out", tmp_path / "onnx", absent=tuple(set(ABSENT) - {"onnx"}))
    assert done.returncode == 0, done.stderr
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
    network, _ = load_graph_network(_written_for_writers, threads=1)
    stored = ExitStore(tmp_path / "own").load(network.backbone_fingerprint, network.exit_state(), None)
    network.load_exit_state(stored.exit_weights)
    expected = engine_for(network, stored.policy, last_shift=stored.last_shift).explore(images)
    np.testing.assert_allclose(OnnxEngine(tmp_path / "onnx").explore(images).logits, expected.logits, atol=1e-4)


def test_a_device_runs_int8_graphs_that_were_calibrated_on_other_users(_written_for_writers, tmp_path):
    model = shutil.copytree(_written_for_writers, tmp_path / "model")
    data = ("--dataset", "synthetic-writers", "--num-writers", 6)
    with_onnx = tuple(set(ABSENT) - {"onnx"})
    done = call("export", "--model", model, "--int8", "--users", 4, *data, absent=with_onnx)
    assert done.returncode == 0, done.stderr
    assert "devices take these with --graphs int8" in done.stdout
    life = (
        "personalise",
        "--model",
        model,
        "--schedule",
        "fast",
        "--user",
        "s0w0001",
        "--store",
        tmp_path / "own",
        *data,
    )
    done = call(*life, "--graphs", "int8", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["round"] == 1
    # another backbone: neither do the float32 graphs go on from these exits
    refused = call(*life)
    assert refused.returncode == 2
    assert "belong to another model" in refused.stderr
    refused = call("export", "--model", model, "--int8", "--store", tmp_path / "own", "--out", tmp_path / "out")
    assert (refused.returncode, "leave --store and --out out" in refused.stderr) == (2, True)


@pytest.fixture(scope="session")
def _written_for_writers(tmp_path_factory):
    from persephonee.multi_exit.building import build_network

    folder = tmp_path_factory.mktemp("models") / "writers"
    network = build_network("squeezenet1_1", num_exits=2, num_classes=62, head="pooled")
    save_network(network, folder, ModelMetadata())
    write_graphs(network, folder)
    return folder
