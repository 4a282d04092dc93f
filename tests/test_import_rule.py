"""The folder says where the code runs: what each may import, and what a device must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"multi_exit", "data_partitions", "clients", "server", "fl_app", "experiments", "benchmarks", "tests"}
MAY_IMPORT = {
    "multi_exit": set(),
    "data_partitions": set(),
    "clients": {"multi_exit", "data_partitions"},
    "server": {"multi_exit", "data_partitions"},
    "fl_app": {"multi_exit", "data_partitions", "clients", "server"},
    "experiments": OURS - {"tests", "benchmarks"},
    "benchmarks": OURS - {"tests"},
}
FLOWER = {"flwr", "ray"}
# an opponent that is measured against: a Flower app of its own
PLAIN_FLOWER = ROOT / "benchmarks" / "plain_flower"
# the one verb that runs a study; it imports it when it is called
VERB_OF_STUDIES = ROOT / "fl_app" / "command_figures.py"
COMMAND_LINE = sorted((ROOT / "fl_app").glob("command_*.py"))


def imports_of(path: Path, only_at_import: bool = False) -> set[str]:
    """Return the top-level packages that a file names, in functions too unless only_at_import."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if not only_at_import else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(str(node.module).split(".")[0])
    return found


def files_of(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} holds no Python file"
    return files


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_each_folder_imports_only_what_its_side_may_see(folder):
    for path in files_of(folder):
        allowed = MAY_IMPORT[folder] | ({"experiments"} if path == VERB_OF_STUDIES else set())
        strangers = (imports_of(path) & OURS) - allowed - {folder}
        assert not strangers, f"{path.relative_to(ROOT)} imports {', '.join(sorted(strangers))}"


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT.keys() - {"fl_app"}))
def test_only_the_app_imports_flower_and_ray(folder):
    for path in files_of(folder):
        if path.parent == PLAIN_FLOWER:
            continue
        assert not imports_of(path) & FLOWER, f"{path.relative_to(ROOT)} imports Flower or Ray"


@pytest.mark.parametrize("path", COMMAND_LINE, ids=lambda path: path.name)
def test_the_command_line_loads_nothing_heavy_before_a_verb_is_called(path):
    heavy = {"torch", "torchvision", "pandas", "pyarrow", "matplotlib", "multi_exit", "data_partitions", "clients"}
    assert not imports_of(path, only_at_import=True) & (heavy | FLOWER)


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def modules_of(*folders: str) -> list[str]:
    paths = [path for folder in folders for path in files_of(folder)]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem != "__init__"]


def test_the_on_device_pipeline_runs_where_flower_and_ray_are_missing():
    modules = modules_of("multi_exit", "data_partitions", "clients")
    loaded = loaded_after("\n".join(f"import {name}" for name in modules))
    assert {"clients", "multi_exit", "data_partitions", "torch"} <= loaded
    assert not loaded & (FLOWER | {"server", "fl_app", "matplotlib"})


def test_the_command_line_itself_is_light():
    loaded = loaded_after("import fl_app.command_line")
    assert not loaded & (FLOWER | {"torch", "pandas", "matplotlib", "clients"})
