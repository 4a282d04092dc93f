"""The Flower app as a folder of its own, made from the code that this process runs.

`flwr run` packs a folder with a pyproject.toml. A repository has one, an installed package has not; a copy works for
both, carries nothing but our packages, and does not change while a run goes on.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fl_app.code_fingerprint import PACKAGES, source_files, source_root
from fl_app.run_config import Value

# What `flwr run` packs beside Python files; data of other kinds would not arrive.
_PACKED_DATA = (".json", ".md", ".toml", ".yaml")


def write_app_folder(folder: Path, config: Mapping[str, Value]) -> Path:
    """Write the app with `config` as its run configuration into `folder`, and return the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    root = source_root()
    data = [p for package in PACKAGES for p in (root / package).rglob("*") if p.suffix in _PACKED_DATA]
    for source in (*source_files(), *data):
        target = folder / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    lines = "\n".join(f"{key} = {toml_value(value)}" for key, value in config.items())
    (folder / "pyproject.toml").write_text(_PYPROJECT.format(version=_version(), config=lines), encoding="utf-8")
    return folder


# The dependencies are installed already, in the interpreter that starts the run.
_PYPROJECT = """\
[project]
name = "persephonee"
version = "{version}"
description = "Personalised early exits"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "persephonee"

[tool.flwr.app.components]
serverapp = "fl_app.server_app:app"
clientapp = "fl_app.client_app:app"

[tool.flwr.app.config]
{config}
"""


def toml_value(value: Value) -> str:
    """Return a setting as TOML writes it."""
    if isinstance(value, str):
        # a JSON string is a TOML string, apart from DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _version() -> str:
    try:
        return version("persephonee")
    except PackageNotFoundError:
        return "0"
