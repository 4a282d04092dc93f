import numpy as np
import pytest
from typer.testing import CliRunner

from persephonee.clients.inference.inference_engine import InferenceEngine
from persephonee.clients.inference.onnx_engine import OnnxEngine
from persephonee.clients.personalisation.exit_store import ExitStore, StoredExits
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.commands.application import app
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.tiny_cnn import NAME, SIDE, SOURCE


@pytest.fixture
def network():
    return build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))


@pytest.fixture
def personalised(network, tmp_path) -> tuple[str, ...]:
    """Options of a model and of a device's store whose policy uses exit 1 only."""
    save_network(network, tmp_path / "model", ModelMetadata(class_names=("upright", "level")))
    ExitStore(tmp_path / "store").save(
        StoredExits(
            client_id="u07",
            round=2,
            backbone_fingerprint=network.backbone_fingerprint,
            policy=ExitPolicy(threshold=0.55, exits_in_use=(1,), num_exits=2),
            exit_weights={name: tensor * 1.5 for name, tensor in network.exit_state().items()},
        ),
        network.exit_state(),
    )
    return ("--model", str(tmp_path / "model"), "--store", str(tmp_path / "store"), "--sources", SOURCE)


def call(*words: str):
    return CliRunner().invoke(app, ["export", *words])


def test_export_writes_the_personal_network_and_refuses_to_write_over_it(network, personalised, tmp_path):
    out = tmp_path / "onnx"
    result = call(*personalised, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "3 graphs" in result.stdout and "exits 1 and the last one, threshold 0.55" in result.stdout
    engine = OnnxEngine(out)
    assert (engine.exported.client_id, engine.exported.class_names) == ("u07", ("upright", "level"))
    network.load_exit_state({name: tensor * 1.5 for name, tensor in network.exit_state().items()})
    images = np.random.default_rng(0).integers(0, 256, (5, 1, SIDE, SIDE), dtype=np.uint8)
    expected = InferenceEngine(network, engine.policy).explore(images)
    np.testing.assert_allclose(engine.explore(images).logits, expected.logits, atol=1e-4)

    again = call(*personalised, "--out", str(out))
    assert again.exit_code == 2
    assert again.stderr.splitlines()[-1] == f"Error: {out} is not empty: give another folder, or --overwrite."


def test_a_store_without_personal_exits_is_refused(personalised, tmp_path):
    result = call(*personalised, "--store", str(tmp_path / "empty"), "--out", str(tmp_path / "onnx"))
    assert result.exit_code == 2
    assert "holds no personal exits" in result.stderr
    assert not (tmp_path / "onnx").exists()


def test_a_store_of_another_model_is_refused(personalised, tmp_path):
    other = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,), seed=1)
    save_network(other, tmp_path / "other", ModelMetadata())
    result = call(*personalised, "--model", str(tmp_path / "other"), "--out", str(tmp_path / "onnx"))
    assert result.exit_code == 2
    assert "belong to another model" in result.stderr
