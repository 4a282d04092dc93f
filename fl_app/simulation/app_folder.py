"""The Flower app as a folder of its own, made from the code that this process runs.

`flwr run` packs a folder with a pyproject.toml. A repository has one, an installed package has not; a copy works for
both, carries nothing but our packages, and does not change while a run goes on.
"""

import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from persephonee.fl_app.settings.run_config import Value, toml_value
from persephonee.fl_app.wire.code_fingerprint import source_files

# What `flwr run` packs beside Python files; data of other kinds would not arrive.
_PACKED_DATA = (".json", ".md", ".toml", ".yaml")


def write_app_folder(folder: Path, config: Mapping[str, Value]) -> Path:
    """Write the app with `config` as its run configuration into `folder`, and return the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    for name, source in source_files((".py", *_PACKED_DATA)).items():
        target = folder / "persephonee" / name
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
serverapp = "persephonee.fl_app.server_side.server_app:app"
clientapp = "persephonee.fl_app.client_side.client_app:app"

[tool.flwr.app.config]
{config}
"""


def _version() -> str:
    try:
        return version("persephonee")
    except PackageNotFoundError:
        return "0"
