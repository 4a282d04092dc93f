"""Each extra, installed from this tree into an empty environment: help, one bad option, and one real verb.

Slow, and it needs a registry of packages: `pytest -m slow tests/test_extras.py`. PERSEPHONEE_PIP_ARGS adds arguments to
its installer, such as an index of torch's CPU builds.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from persephonee.server.results.run_folder import RunFolder
from tests.server.conftest import CONFIG, made_up_round

ROOT = Path(__file__).resolve().parent.parent
DATA = "--num-writers 12"
PRETRAIN = f"pretrain --backbone squeezenet1_1 --num-exits 2 {DATA} --epochs 1 --max-samples 200 --out model"
PERSONALISE = f"personalise --model model {DATA} --user USER --store store --schedule fast"
VERBS = {
    "": ["device run --help"],
    "train": [PRETRAIN, PERSONALISE],
    "report": ["report run"],
    "device": [PRETRAIN, PERSONALISE, "export --model model --store store --out onnx"],
    "datasets,train": [PRETRAIN],
    "flower": ["server init --out server --host 127.0.0.1"],
    "simulation,privacy": [PRETRAIN, f"simulate --model model {DATA} --clients 2 --rounds 1 --run-dir run"],
    "tensorboard": [f"{PRETRAIN} --track tensorboard"],
    "mlflow,hub,train": [f"{PRETRAIN} --track mlflow", "model push model copy"],
    "timm": ["inspect --backbone timm/lcnet_050 --num-exits 2 --input-size 64 --num-classes 10"],
}


def run(folder: Path, words: list[str], expected: int = 0) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == expected, f"{shlex.join(words)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", VERBS, ids=lambda extra: extra or "none")
def test_an_extra_works_in_an_empty_environment(extra, tmp_path):
    run(tmp_path, [sys.executable, "-m", "venv", "env"])
    python, uv = str(tmp_path / "env/bin/python"), Path(sys.executable).with_name("uv")
    # uv, which Flower brings along, keeps what it has installed once
    pip = [str(uv), "pip", "install", "--python", python] if uv.exists() else [python, "-m", "pip", "install"]
    pip += ["--quiet", *shlex.split(os.environ.get("PERSEPHONEE_PIP_ARGS", ""))]
    reachable = subprocess.run([*pip, "wheel"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if reachable.returncode:
        pytest.skip(f"no registry of packages can be reached: {reachable.stderr.strip().splitlines()[-1:]}")
    run(tmp_path, [*pip, f"{ROOT}[{extra}]" if extra else str(ROOT)])
    persephonee = str(tmp_path / "env/bin/persephonee")
    assert "pretrain" in run(tmp_path, [persephonee, "--help"])
    said = run(tmp_path, [persephonee, "personalise", "--schedule", "slow"], expected=2)
    assert "'slow' is not one of" in said
    if extra == "report":
        RunFolder.create(tmp_path / "run", CONFIG).append_round(**made_up_round(1))
    for verb in VERBS[extra]:
        run(tmp_path, [persephonee, *(word.replace("USER", _held_out(tmp_path)) for word in shlex.split(verb))])


def _held_out(folder: Path) -> str:
    """Return a user on whom the model was not trained."""
    described = folder / "model" / "network.json"
    text = described.read_text() if described.exists() else ""
    return next(f"s0w{number:04d}" for number in range(12) if f"s0w{number:04d}" not in text)
