"""A flipped bit or a missing end in any file that the product writes: one sentence, or the right result."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.x509 import load_pem_x509_certificate

from persephonee.clients.inference.onnx_engine import OnnxEngine
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.commands.run_settings import resumed_settings
from persephonee.fl_app.client_side.asked import AskedFile
from persephonee.fl_app.deployment import doctor
from persephonee.fl_app.deployment.certificates import make_certificates
from persephonee.fl_app.server_side import server_app
from persephonee.fl_app.server_side.run_rounds import Rounds
from persephonee.fl_app.server_side.run_status import StatusFile
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.simulation import resuming
from persephonee.multi_exit.checked_json import write_with_digest
from persephonee.multi_exit.graphs.network import load_graph_network
from persephonee.multi_exit.graphs.writing import write_graphs
from persephonee.multi_exit.storage import SavedModel, load_network
from persephonee.server.report import report_page
from persephonee.server.report.example_user_section import Example, ExampleUser, keep_example_user
from persephonee.server.results.run_folder import RunFolder
from persephonee.server.results.table_schemas import SCHEMAS
from persephonee.server.training import pretraining
from persephonee.server.training.pretraining_checkpoint import save_checkpoint
from tests.commands.command_line import call
from tests.fl_app.damage import Refused, attack, ran
from tests.tiny_cnn import NAME, SOURCE

COUNTS = [pytest.param(2, id="few"), pytest.param(200, id="many", marks=pytest.mark.slow)]
FEW_EPOCHS = ("--epochs", 1, "--batch-size", 8, "--sources", SOURCE)


_MADE: dict[str, Path] = {}
"""What was made for an earlier test; damage is done to copies."""


@pytest.fixture
def product(request) -> Callable[[str], Path]:
    """Return a function that makes what a fixture makes, once for all tests."""
    return lambda name: _MADE[name] if name in _MADE else _MADE.setdefault(name, request.getfixturevalue(name))


@pytest.fixture
def data_words(product):
    return ("--dataset", "parquet", "--data-path", product("data"))


@pytest.fixture
def store(tmp_path, product, data_words) -> Path:
    """What two rounds of `personalise` leave."""
    folder, model = tmp_path / "store", product("model")
    for _ in range(2):
        done = call("personalise", "--model", model, *data_words, "--user", "u0", "--store", folder, *FEW_EPOCHS)
        assert done.exit_code == 0, done.output
    return folder


def inspected(folder: Path) -> str:
    return ran(call("inspect", folder, "--json", "--sources", SOURCE))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pattern", ["network.json", "weights-*"])
def test_a_damaged_model(product, pattern, count):
    attack(product("model"), pattern, lambda folder: (inspected(folder), load_network(folder, (SOURCE,))[1]), count)


@pytest.fixture
def on_graphs(tmp_path, product) -> Path:
    """The model with the graphs that a device without PyTorch runs."""
    folder = shutil.copytree(product("model"), tmp_path / "on-graphs")
    write_graphs(load_network(folder, (SOURCE,))[0], folder)
    return folder


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pattern", ["graph-*.onnx", "network.json", "weights-*"])
def test_a_damaged_model_that_runs_on_its_graphs(product, pattern, count):
    def read(folder):
        network, metadata = load_graph_network(folder, threads=1)
        embedded = network.embed(np.zeros((2, *network.input_shape), dtype=np.uint8))
        return [rows.tolist() for rows in embedded.exits], embedded.last_logits.tolist(), metadata

    attack(product("on_graphs"), pattern, read, count)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pattern", ["state.json", "exits-*"])
def test_a_damaged_store(product, pattern, count):
    network, _ = load_network(product("model"), (SOURCE,))
    backbone, own = network.backbone_fingerprint, network.exit_state()

    def read(folder):
        found = ExitStore(folder).load(backbone, own, None)
        weights = {name: tensor.tolist() for name, tensor in found.exit_weights.items()}
        repeating = (found.run, found.round)
        earlier = ExitStore(folder).load(backbone, own, None, repeating) if found.run else None
        return found.policy, found.round, weights, found.parts.to_text(), earlier and earlier.round

    counts = attack(product("store"), pattern, read, count)
    assert counts["refused"] or count < 20


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_memory_of_what_a_device_was_asked(tmp_path, count):
    (tmp_path / "store").mkdir()

    def asked(folder):
        return AskedFile(folder, (), False).admit("train", "run", 1, "model")

    asked(tmp_path / "store")
    attack(tmp_path / "store", "asked.json", asked, count)


@pytest.fixture
def exported(tmp_path, product) -> Path:
    """What `export` makes of the store."""
    words = ("--model", product("model"), "--store", product("store"), "--sources", SOURCE)
    done = call("export", *words, "--out", tmp_path / "onnx")
    assert done.exit_code == 0, done.output
    return tmp_path / "onnx"


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pattern", ["policy.json", "*.onnx"])
def test_a_damaged_export(product, pattern, count):
    def read(folder):
        engine = OnnxEngine(folder, threads=1)
        images = np.random.default_rng(0).integers(0, 256, (4, *engine.exported.input_shape), dtype=np.uint8)
        return asdict(engine.exported), engine.explore(images).logits.tolist()

    attack(product("exported"), pattern, read, count)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Pictures take seconds, and nothing reads them."""
    monkeypatch.setattr(report_page, "draw_figures", lambda *_: [])


@pytest.fixture
def run_dir(settings, make_grid, simulated_nodes) -> Path:
    """A run of a round with sharing, noise and an example user, as a kill before its second round leaves it."""
    more = {"share-exits": True, "dp-noise-multiplier": 0.5, "min-sharers": 2, "rounds": 1, "held-out-fraction": 0.3}
    settings = AppSettings.from_run_config({**settings.to_run_config(), **more})
    grid = make_grid(simulated_nodes(4), settings)
    folder = server_app.serve(grid, settings, settings.paths.model, settings.paths.run_dir).parent
    resuming.keep_settings(settings, folder)
    image = np.zeros((12, 12), dtype=np.uint8)
    example = Example(image=image, label="a", before="b", after="a")
    report_page.draw_report(folder)
    keep_example_user(folder / "figures", ExampleUser(client_id="u0", exit=0, examples=(example,)))
    return folder


def reported(folder: Path) -> str:
    page = ran(call("report", folder))
    return page + (folder / "summary.json").read_text() + (folder / "report.html").read_text()


def resumed(folder: Path):
    """Return all that a resumed run reads before it asks its first client."""
    resuming.stop_killed_run(folder)
    settings = resumed_settings(folder, (), {"sources": SOURCE, "rounds": 2})
    model = SavedModel.read(settings.model_folder(0), settings.sources)
    config = server_app.config_of(settings, model)
    run = RunFolder.create(folder, config, resume=True, may_differ=server_app.MAY_DIFFER)
    begun = Rounds(None, settings, model, run, StatusFile(folder))._begun
    tables = run.tables()
    arrays = {name: array.tolist() for name, array in begun.arrays.items()}
    rows = [getattr(tables, name).to_pylist() for name in SCHEMAS]
    return settings.to_run_config(), config, replace(begun, arrays=arrays), rows


RUN_FILES = ["config.json", "exits.parquet", "clients.parquet", "rounds.parquet", "sharing.parquet", "held_out.parquet"]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pattern", [*RUN_FILES, "privacy.json", "summary.json", "figures/example_user.json"])
def test_a_damaged_run_that_is_reported(product, pattern, count):
    attack(product("run_dir"), pattern, reported, count)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pattern", [*RUN_FILES, "checkpoint/settings.json", "checkpoint/round-000001*", "status.json"])
def test_a_damaged_run_that_is_resumed(product, pattern, count):
    attack(product("run_dir"), pattern, resumed, count)


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_note_of_who_runs(product, tmp_path, count):
    shutil.copytree(product("run_dir"), tmp_path / "killed")
    note = {"scratch": "/nowhere", "pid": 2**22 + 1, "since": 1.5}
    write_with_digest(tmp_path / "killed" / "checkpoint" / resuming.NOTE_NAME, note)
    attack(tmp_path / "killed", f"checkpoint/{resuming.NOTE_NAME}", resumed, count)


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_checkpoint_of_a_pretraining(tmp_path, data_words, count, monkeypatch):
    # what follows the training takes seconds, and reads no checkpoint
    monkeypatch.setattr("persephonee.commands.pretrain.write_graphs_if_possible", lambda *_: None)
    network = ("--backbone", NAME, "--num-exits", 2, "--head", "pooled")
    words = ("pretrain", *network, *data_words, "--epochs", 2, "--batch-size", 32, "--calibration-users", 0)

    def read(folder):
        ran(call(*words, "--out", folder, "--resume"))
        return load_network(folder, (SOURCE,))[0].fingerprint

    def interrupted(path, checkpoint):
        save_checkpoint(path, checkpoint)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "save_checkpoint", interrupted)
        assert call(*words, "--out", tmp_path / "M").exit_code == 130
    attack(tmp_path / "M", "checkpoint*", read, count)


@pytest.fixture
def device(tmp_path, product, data_words) -> Path:
    """The store of a device that answered a user's samples and had a round."""
    eager = ("--min-new-samples", 12, "--min-calibration", 2, "--power", "always", "--every", 60)
    folder = tmp_path / "device"
    done = call(
        "device",
        "run",
        "--model",
        product("model"),
        *data_words,
        "--user",
        "u0",
        "--store",
        folder,
        *eager,
        *FEW_EPOCHS,
    )
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_database_of_a_device(product, count):
    def read(folder):
        return ran(call("device", "status", "--store", folder, "--json", "--events", 1000))

    counts = attack(product("device"), "device.sqlite", read, count)
    assert counts["refused"] or count < 20


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["ca.crt", "device.key", "device.key.pub", "connection.json"])
def test_damaged_enrolment(tmp_path, data_words, name, count, monkeypatch):
    # how much memory is free is of no interest here
    monkeypatch.setattr(doctor, "check_machine", lambda _: [])
    assert call("server", "init", "--host", "localhost", "--out", tmp_path / "server").exit_code == 0
    link = ("--superlink", "127.0.0.1:9", "--root-certificate", tmp_path / "server" / "ca.crt")
    own = ("--client-id", "u0", "--store", tmp_path / "s", "--out", tmp_path / "enrolled")
    assert call("device", "enrol", *own, *link, *data_words).exit_code == 0

    def read(folder):
        (folder / "device.key").chmod(0o600)
        found = json.loads(ran(call("device", "doctor", folder, "--json")))
        if any(one["level"] == "wrong" and "nothing listens" not in one["found"] for one in found):
            raise Refused
        return found

    attack(tmp_path / "enrolled", name, read, count)


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_certificate_of_the_authority_that_a_device_is_given(tmp_path, data_words, count):
    made = make_certificates(("localhost",), days=9)
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "ca.crt").write_bytes(made.ca_certificate)

    def read(folder):
        link = ("--superlink", "127.0.0.1:9", "--root-certificate", folder / "ca.crt")
        out = tmp_path / "enrolled"
        shutil.rmtree(out, ignore_errors=True)
        ran(call("device", "enrol", "--client-id", "u0", "--store", tmp_path / "s", "--out", out, *link, *data_words))
        return load_pem_x509_certificate((out / "ca.crt").read_bytes())

    attack(tmp_path / "server", "ca.crt", read, count)
