"""A new Flower app as a folder: two short files of one's own, and the rest imports `persephonee`."""

import keyword
import re
import sys
from pathlib import Path

from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.run_config import toml_value
from persephonee.fl_app.template import compose_files, python_files, text_files
from persephonee.multi_exit.atomic_files import new_folder_atomically

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
TAKEN = frozenset({"persephonee", "flwr", "ray", "torch", "torchvision", "numpy", "test", "tests", "data"})


def write_new_app(folder: Path) -> tuple[Path, str]:
    """Write the app into `folder`, whose name is the app's, and return the folder and the Python package's name.

    Raises:
        AppError: the folder holds something, or its name cannot be an app's.
        OSError: it cannot be written; nothing is left behind.
    """
    folder = folder.expanduser().absolute()
    package = _package_of(folder.name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise AppError(f"{folder} is not empty: name a new folder.")
    with new_folder_atomically(folder) as made:
        for name, text in _files(folder, package).items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(text, encoding="utf-8")
    return folder, package


def _package_of(name: str) -> str:
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise AppError(f"{name!r} cannot be an app's name: take small letters, digits and hyphens, such as my-app.")
    if package in TAKEN or package in sys.stdlib_module_names or keyword.iskeyword(package):
        raise AppError(f"{name} is what another Python package is called: take another name.")
    return package


def _files(folder: Path, package: str) -> dict[str, str]:
    words = {
        "name": folder.name,
        "package": package,
        # Flower's processes work elsewhere, so that the paths have to be whole
        "data_path": toml_value(str(folder / "users.parquet")),
        "run_dir": toml_value(str(folder / "runs" / "first")),
    }
    files = {
        "pyproject.toml": text_files.PYPROJECT,
        "README.md": text_files.README,
        ".gitignore": text_files.IGNORED,
        f"{package}/__init__.py": python_files.PACKAGE,
        f"{package}/cnn.py": python_files.CNN,
        f"{package}/users.py": python_files.USERS,
        f"{package}/server_app.py": python_files.SERVER_APP,
        f"{package}/client_app.py": python_files.CLIENT_APP,
        "deploy/compose.yaml": compose_files.COMPOSE,
        "deploy/Dockerfile": compose_files.DOCKERFILE,
        "deploy/README.md": compose_files.README,
    }
    return {name: _filled(text, words) for name, text in files.items()}


def _filled(text: str, words: dict[str, str]) -> str:
    # braces belong to Python and YAML
    for key, value in words.items():
        text = text.replace(f"<<{key}>>", value)
    return text
