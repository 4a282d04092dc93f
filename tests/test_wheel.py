"""What somebody gets who installs the wheel: one name, which gets in nobody's way, and types."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("persephonee", "multi_exit", "data_partitions", "clients", "server", "fl_app")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")

CONSUMER = """\
from pathlib import Path

import persephonee


def personalised_accuracy(samples: persephonee.UserSamples) -> float:
    network, _ = persephonee.load_network(Path("model"))
    split = persephonee.split_samples(samples, persephonee.SplitSettings(), seed=0)
    settings = persephonee.PersonalisationSettings(weights=persephonee.LossWeights(beta=1.0))
    result = persephonee.personalise(network, samples, split, settings)
    policy: persephonee.ExitPolicy = result.policy
    print(policy.threshold, result.report.accuracy_original)
    return result.report.accuracy_after


def wrong(policy: persephonee.ExitPolicy) -> str:
    return policy.threshold  # type: ignore[return-value]
"""

# types come from the wheel; those of the libraries below it would take a minute to read
MYPY_SETTINGS = """\
[mypy]
strict = true
[mypy-torch.*,torchvision.*,numpy.*,pandas.*,pyarrow.*,PIL.*]
follow_imports = skip
follow_imports_for_stubs = true
"""


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    env |= {"OMP_NUM_THREADS": "1"} | ({} if path is None else {"PYTHONPATH": str(path)})
    return subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of the tree, without asking an index for anything."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / "tree")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    done = run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, folder / "tree", cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return the folder into which the wheel alone was installed."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_adds_one_name_and_no_studies(installed):
    # beside what pip takes apart: the description, and the console's script
    names = [path.name for path in installed.iterdir() if path.suffix not in (".dist-info", ".data")]
    assert names == ["persephonee"]
    rooms = {path.name for path in (installed / "persephonee").iterdir() if path.is_dir()}
    assert rooms == {*FOLDERS, "commands"} - {"persephonee"}
    assert (installed / "persephonee" / "py.typed").exists()
    missing = [
        path
        for folder in FOLDERS[1:]
        for path in (ROOT / folder).rglob("*.py")
        if not (installed / "persephonee" / path.relative_to(ROOT)).exists()
    ]
    assert not missing


def test_files_of_ones_own_named_like_our_folders_stay_ones_own(installed, tmp_path):
    (tmp_path / "server.py").write_text("NAME = 'my server'\n")
    (tmp_path / "clients.py").write_text("NAME = 'my clients'\n")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("NAME = 'my experiments'\n")
    (tmp_path / "script.py").write_text(
        "import clients, experiments, server\n"
        "import persephonee\n"
        "from persephonee.clients.personalisation.policy import ExitPolicy\n"
        "from persephonee.server.results.run_folder import RunFolder\n"
        "assert persephonee.ExitPolicy is ExitPolicy\n"
        "print(server.NAME, clients.NAME, experiments.NAME, persephonee.__file__, sep='\\n')\n"
    )
    done = run(sys.executable, "script.py", cwd=tmp_path, path=installed)
    front_door = str(installed / "persephonee" / "__init__.py")
    assert done.stdout.splitlines() == ["my server", "my clients", "my experiments", front_door], done.stderr


@pytest.mark.parametrize("name", ["persephonee.py", "persephonee/__init__.py", "persephonee/notes.txt"])
def test_a_module_of_ones_own_called_persephonee_does_not_break_the_console(installed, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise RuntimeError('mine')\n")
    (script,) = installed.glob("*.data/scripts/persephonee")
    both = f"{tmp_path}{os.pathsep}{installed}"
    done = run(sys.executable, script, "--version", cwd=tmp_path, path=both)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("persephonee 0")
    # what lies beside it is still found
    (tmp_path / "my_cnn.py").write_text("build = None\n")
    done = run(sys.executable, script, "inspect", "--backbone", "my_cnn:build", cwd=tmp_path, path=both)
    assert "my_cnn" in done.stderr and "No module" not in done.stderr and "Traceback" not in done.stderr


def test_the_verb_that_needs_a_checkout_says_so_in_one_sentence(installed, tmp_path):
    done = run(sys.executable, "-m", "persephonee", "figures", "--out", tmp_path, cwd=tmp_path, path=installed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "clone the repository" in done.stderr


def test_a_consumers_script_passes_mypy_strictly(installed, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    shutil.copytree(installed, site, dirs_exist_ok=True)
    (site / "installed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (tmp_path / "consumer.py").write_text(CONSUMER)
    (tmp_path / "mypy.ini").write_text(MYPY_SETTINGS)
    python = tmp_path / "venv" / "bin" / "python"
    done = run(sys.executable, "-m", "mypy", "--python-executable", python, "consumer.py", cwd=tmp_path)
    # strict: the ignored line would be an error of its own if it had none, as where everything is Any
    assert done.returncode == 0, done.stdout + done.stderr
