import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from persephonee.clients.errors import ClientSettingsError, ExportError
from persephonee.clients.inference.inference_engine import InferenceEngine
from persephonee.clients.inference.onnx_engine import OnnxEngine
from persephonee.clients.inference.onnx_export import export_onnx
from persephonee.clients.personalisation.exit_store import StoredExits
from persephonee.clients.personalisation.familiar_images import FamiliarImages, image_statistics
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays, classifiers_of, with_classifiers
from persephonee.multi_exit.graphs.network import GraphNetwork, load_graph_network
from persephonee.multi_exit.graphs.writing import with_exportable_pooling, write_graphs
from persephonee.multi_exit.storage import ModelMetadata, save_network

REPOSITORY = Path(__file__).resolve().parents[3]


def stored_exits(network, threshold: float, exits: tuple[int, ...]) -> StoredExits:
    return StoredExits(
        client_id="f0001_01",
        round=3,
        backbone_fingerprint=network.backbone_fingerprint,
        policy=ExitPolicy(threshold=threshold, exits_in_use=exits, num_exits=network.num_exits),
        exit_weights=network.exit_state(),
    )


@pytest.fixture
def images(draw_user) -> np.ndarray:
    return draw_user(n=60, tilt=1, seed=9).images


@pytest.fixture(scope="session")
def _exported_once(_trained_toy_network, tmp_path_factory) -> Path:
    """Personal exits that differ from the network's own, both in use."""
    network, folder = _trained_toy_network, tmp_path_factory.mktemp("exported") / "onnx"
    before = network.fingerprint
    stored = stored_exits(network, 0.8, (0, 1))
    export_onnx(network, replace(stored, exit_weights=personal(stored)), folder, class_names=("a", "b", "c", "d"))
    assert network.fingerprint == before
    return folder


@pytest.fixture
def exported(_exported_once, tmp_path) -> Path:
    return shutil.copytree(_exported_once, tmp_path / "onnx")


def personal(stored: StoredExits) -> dict[str, Tensor]:
    return {name: tensor * 1.05 for name, tensor in stored.exit_weights.items()}


def assert_parity(engine: OnnxEngine, torch_engine: InferenceEngine, images: np.ndarray) -> None:
    theirs, ours = engine.explore(images), torch_engine.explore(images)
    assert theirs.exits == ours.exits
    np.testing.assert_allclose(theirs.logits, ours.logits, atol=1e-4)
    tie = (np.abs(ours.confidences[:-1] - engine.policy.threshold) < 1e-4).any(axis=0)
    for size in (1, 7, len(images)):
        predictions, expected = engine.infer(images[:size]), torch_engine.infer(images[:size])
        assert (predictions.exit_indices == expected.exit_indices)[~tie[:size]].all()
        assert (predictions.labels == expected.labels)[~tie[:size]].all()


def test_onnx_runtime_gives_the_logits_and_exits_of_torch_for_any_batch_size(toy_network, exported, images):
    engine = OnnxEngine(exported, threads=1)
    toy_network.load_exit_state(personal(stored_exits(toy_network, 0.8, (0, 1))))
    torch_engine = InferenceEngine(toy_network, engine.policy)
    assert set(torch_engine.infer(images).exit_indices.tolist()) == {0, 1, 2}
    assert_parity(engine, torch_engine, images)


def graphs_of(network, folder: Path) -> GraphNetwork:
    save_network(network, folder, ModelMetadata())
    write_graphs(network, folder)
    return load_graph_network(folder, threads=1)[0]


def with_other_classifiers(network) -> ExitWeights:
    weights = as_arrays(network.exit_state())
    generator = np.random.default_rng(0)
    matrices = [matrix + generator.normal(0, 0.1, matrix.shape) for matrix in classifiers_of(weights)]
    return with_classifiers(weights, [matrix.astype(np.float32) for matrix in matrices])


@pytest.mark.parametrize("exits", [(0, 1), (1,), ()])
def test_an_export_from_a_models_graphs_answers_as_the_one_by_torch(toy_network, exits, tmp_path, images):
    graphs = graphs_of(toy_network, tmp_path / "model")
    shifts = np.arange(12, dtype=np.float32).reshape(3, 4) / 2
    stored = replace(stored_exits(toy_network, 0.8, exits), shifts=shifts)
    stored = replace(stored, exit_weights=with_other_classifiers(toy_network))
    engines = []
    for name, network in (("torch", toy_network), ("graphs", graphs)):
        export_onnx(network, stored, tmp_path / name, class_names=("a", "b", "c", "d"))
        engines.append(OnnxEngine(tmp_path / name, threads=1))
    theirs, ours = (engine.explore(images) for engine in engines)
    assert ours.exits == (*exits, 2)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)
    toy_network.load_exit_state(stored.exit_weights)
    assert_parity(engines[1], InferenceEngine(toy_network, stored.policy, last_shift=shifts[-1]), images)
    plain = [json.loads((tmp_path / name / "policy.json").read_text()) for name in ("torch", "graphs")]
    for description in plain:
        del description["sha256"], description["steps"]
    assert plain[0] == plain[1]


def test_a_real_backbones_graphs_merge_without_the_exits_between_them(tmp_path):
    network = build_network("squeezenet1_1", num_exits=3, num_classes=10, head="pooled")
    stored = stored_exits(network, 0.12, (1,))
    graphs = graphs_of(network, tmp_path / "model")
    files = export_onnx(graphs, stored, tmp_path / "onnx").files
    assert [name.rsplit("-", 1)[0] for name in files] == ["stage-1", "stage-3"]
    left_out = onnx.load(tmp_path / "onnx" / files[1])
    assert [output.name for output in left_out.graph.output] == ["3.logits"]
    # the pooling of exit 2 takes maxima, and the backbone takes none that are no MaxPool
    assert "ReduceMax" not in {node.op_type for node in left_out.graph.node}
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 28, 28), dtype=np.uint8)
    assert_parity(OnnxEngine(tmp_path / "onnx", threads=1), InferenceEngine(network, stored.policy), images)


def test_exits_whose_convolutions_were_trained_are_no_export_of_the_models_graphs(toy_network, tmp_path):
    graphs = graphs_of(toy_network, tmp_path / "model")
    stored = stored_exits(toy_network, 0.8, (0,))
    with pytest.raises(ModelFileError, match="were trained"):
        export_onnx(graphs, replace(stored, exit_weights=personal(stored)), tmp_path / "onnx")
    assert not (tmp_path / "onnx" / "policy.json").exists()


def test_an_exported_network_sends_unfamiliar_images_to_the_last_exit_too(toy_network, tmp_path, images):
    stored = stored_exits(toy_network, 0.4, (0, 1))
    familiar = FamiliarImages.of(image_statistics(images), 0.02)
    stored = replace(stored, policy=replace(stored.policy, familiar=familiar))
    export_onnx(toy_network, stored, tmp_path / "onnx")
    engine = OnnxEngine(tmp_path / "onnx", threads=1)
    assert engine.policy == stored.policy
    mixed = np.concatenate([images[:30], 255 - images[:30]])
    assert_parity(engine, InferenceEngine(toy_network, engine.policy), mixed)
    assert (engine.infer(mixed).exit_indices[30:] == 2).all() and (engine.infer(mixed).exit_indices[:30] < 2).any()


def test_the_last_exits_shift_is_in_the_exported_network(toy_network, tmp_path, images):
    shifts = torch.arange(12).reshape(3, 4) / 2
    # no early exit in use, whose graphs would take seconds to write
    stored = replace(stored_exits(toy_network, 0.8, ()), shifts=shifts)
    export_onnx(toy_network, stored, tmp_path / "onnx")
    engine = OnnxEngine(tmp_path / "onnx", threads=1)
    assert_parity(engine, InferenceEngine(toy_network, stored.policy, last_shift=shifts[-1]), images)
    plain = InferenceEngine(toy_network, stored.policy).explore(images).logits[-1]
    np.testing.assert_allclose(engine.explore(images).logits[-1], plain + shifts[-1].numpy(), atol=1e-4)


def test_a_real_backbone_with_merged_stages_and_uneven_pooling_keeps_its_logits(tmp_path):
    network = build_network("squeezenet1_1", num_exits=3, num_classes=10, head="pooled")
    # maps of 6 px pooled to 4x4: windows of uneven size, for which ONNX has no operator
    assert any(shape[1] % 4 for shape in network.feature_shapes)
    stored = stored_exits(network, 0.12, (1,))
    files = export_onnx(network, stored, tmp_path / "onnx").files
    assert [name.rsplit("-", 1)[0] for name in files] == ["stage-1", "head-1", "stage-3"]
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 28, 28), dtype=np.uint8)
    assert_parity(OnnxEngine(tmp_path / "onnx", threads=1), InferenceEngine(network, stored.policy), images)


def test_the_folder_holds_a_graph_for_each_stage_and_head_in_use_and_the_policy(toy_network, exported, tmp_path):
    def parts(folder: Path) -> list[str]:
        return sorted(path.name.rsplit("-", 1)[0] for path in folder.iterdir())

    assert parts(exported) == ["head-0", "head-1", "policy.json", "stage-0", "stage-1", "stage-2"]
    description = json.loads((exported / "policy.json").read_text())
    assert description["policy"] == {"threshold": 0.8, "exits_in_use": [0, 1], "num_exits": 2}
    assert description["class_names"] == ["a", "b", "c", "d"]
    assert description["input_shape"] == [1, 16, 16]
    assert (description["client_id"], description["round"]) == ("f0001_01", 3)
    assert [step["exit"] for step in description["steps"]] == [0, 1, 2]
    export_onnx(toy_network, stored_exits(toy_network, 0.8, ()), tmp_path / "original")
    assert parts(tmp_path / "original") == ["policy.json", "stage-2"]


def test_graphs_that_the_policy_can_never_reach_are_loaded_by_exploring_only(exported, images):
    description = json.loads((exported / "policy.json").read_text())
    description["policy"]["threshold"] = 0.0
    del description["sha256"]
    (exported / "policy.json").write_text(json.dumps(description))
    engine = OnnxEngine(exported)
    assert (engine.infer(images).exit_indices == 0).all()
    assert [name[:7] for name in engine._graphs] == ["stage-0", "head-0-"]
    assert engine.explore(images).exits == (0, 1, 2)
    assert len(engine._graphs) == 5


def test_a_folder_with_something_in_it_is_refused_unless_told_to_overwrite(toy_network, exported, caplog):
    own = exported / "holiday.jpg"
    own.write_bytes(b"mine")
    old = {path.name for path in exported.iterdir()}
    stored = stored_exits(toy_network, 0.6, ())
    with pytest.raises(ExportError, match="--overwrite"):
        export_onnx(toy_network, stored, exported)
    assert {path.name for path in exported.iterdir()} == old
    with caplog.at_level(logging.INFO, logger="persephonee"):
        new = export_onnx(toy_network, stored, exported, overwrite=True)
    assert new.files[0] in caplog.text
    assert {path.name for path in exported.iterdir()} == {*new.files, "policy.json", "holiday.jpg"}
    assert OnnxEngine(exported).policy == stored.policy


def test_an_export_that_breaks_off_leaves_the_previous_network_in_force(toy_network, exported, images, monkeypatch):
    before = OnnxEngine(exported).infer(images)
    stored = stored_exits(toy_network, 0.6, (1,))
    changed = replace(stored, exit_weights=personal(stored))
    written = []

    def full_disk(path, data):
        if written:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        path.write_bytes(data)

    monkeypatch.setattr("persephonee.clients.inference.onnx_export.write_bytes_atomically", full_disk)
    with pytest.raises(OSError, match="No space"):
        export_onnx(toy_network, changed, exported, overwrite=True)
    after = OnnxEngine(exported).infer(images)
    assert (after.confidences == before.confidences).all()


def test_a_damaged_export_is_refused_in_a_sentence(exported, tmp_path):
    with pytest.raises(ExportError, match="has no policy"):
        OnnxEngine(tmp_path / "elsewhere")
    graph = next(exported.glob("head-1-*.onnx"))
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="not the graph that was exported"):
        OnnxEngine(exported)
    graph.unlink()
    with pytest.raises(ExportError, match="cannot be read"):
        OnnxEngine(exported)
    for text in (
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 7}',
        (exported / "policy.json").read_text().replace("0.8", "8"),
    ):
        (exported / "policy.json").write_text(text)
        with pytest.raises(ExportError, match="is damaged"):
            OnnxEngine(exported)


def test_exits_and_policy_of_another_network_are_refused(toy_network, tmp_path):
    stored = stored_exits(toy_network, 0.5, (0,))
    other = replace(stored, policy=ExitPolicy(threshold=0.5, exits_in_use=(5,), num_exits=6))
    with pytest.raises(ClientSettingsError, match="6 early exits"):
        export_onnx(toy_network, other, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(("side", "size"), [(7, 4), (14, 4), (6, 4), (2, 2), (1, 1), (5, 3)])
def test_sliced_maxima_are_adaptive_max_pooling(side, size):
    pooling = nn.Sequential(nn.AdaptiveMaxPool2d(size))
    features = torch.randn(3, 2, side, side + 1)
    assert np.array_equal(with_exportable_pooling(pooling)(features), pooling(features))


def test_the_engine_on_onnx_runtime_needs_no_torch(exported):
    program = (
        "import sys, pathlib, numpy as np\n"
        "from persephonee.clients.inference.onnx_engine import OnnxEngine\n"
        f"answers = OnnxEngine(pathlib.Path({str(exported)!r})).infer(np.zeros((2, 1, 16, 16), dtype=np.uint8))\n"
        "print(len(answers.labels), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_another_threshold_in_an_export_is_noticed(exported):
    path = exported / "policy.json"
    path.write_text(path.read_text().replace('"threshold": 0.', '"threshold": 0.1'))
    with pytest.raises(ExportError, match="sha256"):
        OnnxEngine(exported)


def test_what_a_kill_left_of_an_export_is_no_obstacle_and_is_cleaned_up(toy_network, exported):
    (exported / "policy.json").unlink()
    (exported / ".head-0-0123456789ab.onnx.abcdefgh.persephonee.tmp").write_bytes(b"half")
    new = export_onnx(toy_network, stored_exits(toy_network, 0.6, ()), exported)
    assert {path.name for path in exported.iterdir()} == {*new.files, "policy.json"}
