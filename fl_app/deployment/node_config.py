"""A device's node configuration as a file, which `flower-supernode --node-config FILE.toml` takes.

fl_app/client_side/client_node.py says what the keys mean. Flower also takes `'client-id="ada" store="/path"'`, with
inner quotes;
a file needs no quoting in units and shells, and holds every text, where Flower's pattern knows no escapes.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.run_config import Value, to_flat, toml_value

NODE_CONFIG_NAME = "node.toml"


def data_keys(data: object) -> dict[str, Value]:
    """Return the data settings that are not at their defaults, with absolute paths, under their keys."""
    values, defaults = to_flat(data), to_flat(type(data)())
    if path := values["data-path"]:
        values["data-path"] = str(Path(str(path)).expanduser().absolute())
    return {key: value for key, value in values.items() if value != defaults[key] or key == "dataset"}


def to_toml(config: Mapping[str, Value]) -> str:
    """Return the configuration as a TOML file, one key a line."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in config.items())


def read_node_config(path: Path) -> dict[str, Value]:
    """Return the node configuration in a TOML file.

    Raises:
        AppError: it is no TOML file, or holds more than keys with values.
    """
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AppError(f"{path} is no TOML file ({error}); enrol the device again.") from None
    for key, value in config.items():
        if not isinstance(value, str | int | float | bool):
            raise AppError(f"{path}: {key} is neither a text nor a number; enrol the device again.")
    return config
