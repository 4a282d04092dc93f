"""The wheel in an empty environment without PyTorch: a writer, a device's life, and a federation beside a torch client.

It needs a registry of packages: `pytest -m slow tests/test_light_wheel_slow.py`; uv installs.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from persephonee.clients.inference.onnx_engine import OnnxEngine
from persephonee.fl_app.server_side.run_status import FINISHED
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.graphs.writing import write_graphs
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from tests.conftest import real_data
from tests.fl_app.loopback import IDS, ending_of, enrolled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parent.parent
ABSENT = ("torch", "torchvision", "pandas", "pyarrow", "onnx")


def run(words: list[object], folder: Path, expected: int = 0) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expected, done.stdout[-1000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment that holds the wheel with what a device of a federation needs."""
    folder = tmp_path_factory.mktemp("light")
    uv = Path(sys.executable).with_name("uv")
    run([uv, "build", "--quiet", "--wheel", "--out-dir", folder / "wheel", ROOT], folder)
    (wheel,) = (folder / "wheel").glob("*.whl")
    run([uv, "venv", "--quiet", "--python", sys.executable, folder / "env"], folder)
    python = folder / "env" / "bin" / "python"
    run([uv, "pip", "install", "--quiet", "--python", python, f"persephonee[node] @ file://{wheel}"], folder)
    for name in ABSENT:
        found = f"import importlib.util; raise SystemExit(importlib.util.find_spec({name!r}) is not None)"
        run([python, "-c", found], folder)
    return python


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A model of ten digits that carries its graphs; its weights are random, which is all the same here."""
    folder = tmp_path_factory.mktemp("digits") / "model"
    network = build_network("squeezenet1_1", num_exits=2, num_classes=10, head="pooled")
    save_network(network, folder, ModelMetadata())
    write_graphs(network, folder)
    return folder


def test_a_writer_of_digits_personalises_without_torch_as_with_it(python, digits, tmp_path):
    leaf = real_data("qmnist-leaf")
    users = json.loads(next((leaf / "train").glob("*.json")).read_text())["users"]
    words = ["-m", "persephonee", "personalise", "--model", digits, "--schedule", "fast", "--dataset", "leaf", "--json"]
    words += ["--data-path", leaf, "--user", users[0], "--labels", "all"]
    ours = json.loads(run([python, *words, "--store", tmp_path / "light"], tmp_path))
    theirs = json.loads(run([sys.executable, *words, "--store", tmp_path / "torch", "--runtime", "torch"], ROOT))
    for name in ("num_train", "num_test", "threshold", "rule"):
        assert ours[name] == theirs[name]
    for name in ("accuracy_original", "accuracy_before", "accuracy_after", "mean_macs"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
    export = ["-m", "persephonee", "export", "--model", digits, "--store", tmp_path / "light", "--out"]
    run([python, *export, tmp_path / "refused"], tmp_path, expected=2)
    # what the extra `export` brings
    run([Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--python", python, "onnx"], tmp_path)
    run([python, *export, tmp_path / "by-graphs"], tmp_path)
    run([sys.executable, *export, tmp_path / "by-torch"], ROOT)
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 28, 28), dtype=np.uint8)
    logits = [OnnxEngine(tmp_path / way).explore(images).logits for way in ("by-graphs", "by-torch")]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_a_device_lives_through_a_round_without_torch(python, digits, tmp_path):
    leaf = real_data("qmnist-leaf")
    users = json.loads(next((leaf / "train").glob("*.json")).read_text())["users"]
    words = [python, "-m", "persephonee", "device"]
    life = ["--model", digits, "--schedule", "fast", "--dataset", "leaf", "--data-path", leaf, "--user", users[0]]
    due = ["--power", "always", "--min-new-samples", 20, "--min-calibration", 5, "--every", 1, "--quiet"]
    assert "round done" in run([*words, "run", *life, *due, "--store", tmp_path / "life"], tmp_path)
    assert json.loads(run([*words, "status", "--store", tmp_path / "life", "--json"], tmp_path))["rounds"] >= 1


@contextmanager
def watched_memory(process: psutil.Process) -> Iterator[list[int]]:
    """Yield the bytes that a process and its descendants have resident, ten times a second."""
    seen, ends = [0], threading.Event()

    def watch() -> None:
        while not ends.wait(0.1):
            with suppress(psutil.Error):
                seen.append(sum(one.memory_info().rss for one in (process, *process.children(recursive=True))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ends.set()
        thread.join()


def test_a_supernode_without_torch_takes_part_beside_one_with_it_over_tls(python, tmp_path, record_property):
    with enrolled(tmp_path) as federation:
        network, _ = load_network(federation.folder / "model")
        write_graphs(network, federation.folder / "model")
        unit = federation.devices[IDS[0]]
        unit.stop()
        # the same unit, run by the Python of the empty environment
        text, bin_folder = unit.file.read_text(), str(Path(sys.executable).parent)
        assert bin_folder in text
        unit.file.write_text(text.replace(bin_folder, str(python.parent)))
        unit.start_and_join()
        with watched_memory(psutil.Process(unit.process.pid)) as seen:
            first = federation.run("first", schedule="fast")
            status = ending_of(first, 400, tended=(unit,))
        record_property("megabytes", max(seen) / 1e6)
        assert status.state == FINISHED, status.doing
        clients = pd.read_parquet(first / "clients.parquet").set_index("client_id")
        assert list(clients.status) == ["ok", "ok"]
        (received,) = (federation.folder / "stores" / IDS[0] / "models").iterdir()
        assert any(path.suffix == ".onnx" for path in received.iterdir())
        # a device's seed is its own, so that the figures are near, not equal
        assert clients.accuracy_original.between(0, 1).all()
