"""The front door: `persephonee.__all__` is what there is, for programs, type checkers and readers."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import persephonee

FRONT_DOOR = Path(persephonee.__file__)


def imported_for_type_checkers() -> dict[str, str]:
    """Return the names below `if TYPE_CHECKING`, and the module that each comes from."""
    blocks = [node for node in ast.parse(FRONT_DOOR.read_text()).body if isinstance(node, ast.If)]
    statements = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in statements for alias in node.names}


def test_the_public_names_are_sorted_and_each_is_what_a_type_checker_sees():
    assert persephonee.__all__ == sorted(persephonee.__all__)
    assert imported_for_type_checkers().keys() == set(persephonee.__all__)
    for name, module in imported_for_type_checkers().items():
        assert getattr(persephonee, name) is getattr(importlib.import_module(module), name)


def test_nothing_else_is_public():
    code = "import persephonee; print(*(name for name in dir(persephonee) if not name.startswith('_')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - {"importlib", "Path", "TYPE_CHECKING", "Any"} == set(persephonee.__all__)


def test_every_public_name_has_a_docstring():
    assert not [name for name in persephonee.__all__ if not getattr(persephonee, name).__doc__]


def test_a_name_that_is_not_public_is_an_attribute_error():
    assert not hasattr(persephonee, "train_everything")
