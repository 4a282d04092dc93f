"""The folder says where the code runs: what each may import, and what a device must not load."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"multi_exit", "data_partitions", "clients", "server", "fl_app", "commands", "experiments", "benchmarks"}
MAY_IMPORT = {
    "multi_exit": set(),
    "data_partitions": set(),
    "clients": {"multi_exit", "data_partitions"},
    "server": {"multi_exit", "data_partitions"},
    "fl_app": {"multi_exit", "data_partitions", "clients", "server"},
    "commands": OURS - {"benchmarks", "experiments"},
    "experiments": OURS - {"benchmarks"},
    "benchmarks": OURS,
}
# which rooms of a folder a room may see besides itself; a room that is not named sees all
ROOMS_SEEN = {
    "multi_exit/graphs": {""},
    "multi_exit/repository": {"", "graphs"},
    "clients/personalisation": {""},
    "clients/inference": {"", "personalisation"},
    "server/training": {""},
    "server/results": {""},
    "server/report": {"", "results"},
    "server/tracking": {"", "results", "training"},
    "data_partitions/synthetic": {""},
    "fl_app/wire": {"", "settings"},
    "fl_app/settings": {""},
    "fl_app/template": {"", "settings"},
    "fl_app/deployment": {"", "settings", "client_side"},
    "fl_app/client_side": {"", "wire", "settings"},
    "fl_app/server_side": {"", "wire", "settings"},
}
FLOWER = {"flwr", "ray"}
BROUGHT_ALONG = {"markupsafe", "typing_extensions"}
"""Jinja2 and typer bring them; of the last one types alone are used."""
ROOMS_WITH_FLOWER = {"client_side", "server_side", "wire", "simulation", "deployment"}
# a baseline that is measured against: a Flower app of its own
PLAIN_FLOWER = ROOT / "benchmarks" / "simulation" / "plain_flower"
# the one verb that runs a study; it imports it when it is called
VERB_OF_STUDIES = ROOT / "persephonee" / "commands" / "figures.py"


def folder_of(name: str) -> Path:
    return ROOT / "persephonee" / name if name == "commands" else ROOT / name


def files_of(name: str) -> list[Path]:
    files = sorted(folder_of(name).rglob("*.py"))
    assert files, f"{name} holds no Python file"
    return files


def imports_of(path: Path, only_at_import: bool = False) -> set[str]:
    """Return the dotted names of the modules that a file imports, in functions too unless only_at_import."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in iter(tree.body) if only_at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[tuple[str, str]]:
    """Return folder and room of each of our modules among dotted names; the room is "" for a folder's own files."""
    parts = [name.split(".") for name in names if name.startswith("persephonee.")]
    return {(p[1], p[2] if len(p) > 2 and (folder_of(p[1]) / p[2]).is_dir() else "") for p in parts}


def others(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_each_folder_imports_only_what_its_side_may_see(folder):
    for path in files_of(folder):
        allowed = MAY_IMPORT[folder] | {folder} | ({"experiments"} if path == VERB_OF_STUDIES else set())
        strangers = {name for name, _ in ours(imports_of(path))} - allowed
        assert not strangers, f"{path.relative_to(ROOT)} imports {', '.join(sorted(strangers))}"
        assert not others(imports_of(path)) & (OURS | {"tests"}), f"{path.relative_to(ROOT)} leaves persephonee. out"


@pytest.mark.parametrize("room", ROOMS_SEEN)
def test_each_room_imports_only_the_rooms_that_it_may_see(room):
    folder, name = room.split("/")
    for path in files_of(room):
        seen = {other for where, other in ours(imports_of(path)) if where == folder} - {name}
        assert seen <= ROOMS_SEEN[room], (
            f"{path.relative_to(ROOT)} imports {', '.join(sorted(seen - ROOMS_SEEN[room]))}"
        )


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_only_the_app_imports_flower_and_ray(folder):
    for path in files_of(folder):
        room = path.relative_to(folder_of(folder)).parts[0]
        if path.parent == PLAIN_FLOWER or (folder == "fl_app" and room in ROOMS_WITH_FLOWER):
            continue
        assert not others(imports_of(path)) & FLOWER, f"{path.relative_to(ROOT)} imports Flower or Ray"


@pytest.mark.parametrize("path", files_of("commands"), ids=lambda path: path.name)
def test_the_command_line_loads_nothing_heavy_before_a_verb_is_called(path):
    names = imports_of(path, only_at_import=True)
    assert not others(names) & ({"torch", "torchvision", "pandas", "pyarrow", "matplotlib"} | FLOWER)
    assert not {folder for folder, _ in ours(names)} & {"multi_exit", "data_partitions", "clients"}


def test_no_folder_holds_so_much_that_nobody_finds_anything_in_it():
    folders = {path.parent for name in [*OURS, "tests"] for path in folder_of(name).rglob("*.py")}
    crowded = {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > 22}
    assert not crowded


def loaded_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def modules_of(*folders: str) -> list[str]:
    paths = [path for folder in folders for path in files_of(folder)]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem != "__init__"]
    return [f"persephonee.{name}" for name in names]


def test_the_on_device_pipeline_runs_where_flower_and_ray_are_missing():
    modules = modules_of("multi_exit", "data_partitions", "clients")
    loaded = loaded_after("\n".join(f"import {name}" for name in modules))
    assert {*modules, "torch"} <= loaded
    assert not loaded & (FLOWER | {"persephonee.server", "persephonee.fl_app", "matplotlib"})


def test_the_command_line_itself_is_light():
    loaded = loaded_after("import persephonee.commands.application")
    assert not loaded & (FLOWER | {"torch", "pandas", "matplotlib", "persephonee.clients"})


def declared() -> set[str]:
    """Return the modules of the packages that pyproject.toml names, in any extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    named = {re.match(r"[\w-]+", line)[0].replace("_", "-").lower() for line in lines}
    found = packages_distributions()
    return {module for module, packages in found.items() if {p.replace("_", "-").lower() for p in packages} & named}


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT.keys() - {"experiments", "benchmarks"}))
def test_whatever_is_imported_is_declared(folder):
    allowed = declared() | sys.stdlib_module_names | {"persephonee", *BROUGHT_ALONG}
    for path in files_of(folder):
        strangers = others(imports_of(path)) - allowed
        assert not strangers, (
            f"{path.relative_to(ROOT)} imports {', '.join(sorted(strangers))}: name it in pyproject.toml"
        )
