"""The settings of a simulated run from everything that may say them: options, `--set`, `--config`, the run before.

Everything is brought to run-config keys first, so that the settings' own fields alone know types, ranges and defaults.
Typer stays: a run configuration needs the reflection over the fields in any case (fl_app/settings/run_config.py), and
tyro or cyclopts would only bring a second one, and another kind of error beside it.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from persephonee.commands.options import refuse_missing_labels

if TYPE_CHECKING:
    from persephonee.fl_app.settings.app_settings import AppSettings
    from persephonee.fl_app.settings.run_config import Value

DEFAULT_CLIENTS = 20
"""A run configuration's 0, all nodes that are there, means nothing to a simulation, which makes its nodes."""

NOT_SETTINGS = ("network", "code", "versions", "machine", "model")
"""What a run's config.json records besides settings; its model is a fingerprint, which names no folder."""


NEVER_FROM_A_RECORD = ("sources", "run-dir", "resume", "overwrite", "client-store", "model-store", "weights")
"""What a run folder of a stranger must not choose: what is imported, and where something is written or removed."""


def given_options(context: typer.Context, *keyless: str) -> "dict[str, Value]":
    """Return the options that were given on the command line, under their keys; those of `keyless` are no settings."""
    given: dict[str, Value] = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name not in keyless and source is not None and source.name == "COMMANDLINE":
            given[name.replace("_", "-")] = str(value) if isinstance(value, Path) else value
    return given


def settings_of_run(given: "Mapping[str, Value]", sets: Sequence[str], file: Path | None) -> "AppSettings":
    """Return the settings of a run: the options before `--set`, that before the file, that before the defaults.

    Raises:
        RunConfigError: an unknown key, or a value that does not fit.
        typer.BadParameter: the file or a `--set` cannot be read.
    """
    from persephonee.fl_app.settings.app_settings import SMALL_RUN, AppSettings

    config = {**(read_config(file) if file else {}), **_set_keys(sets), **given}
    settings = AppSettings.from_run_config({**SMALL_RUN, "clients": DEFAULT_CLIENTS, **config})
    refuse_missing_labels(settings.loss, settings.split.labels)
    return settings


def resumed_settings(run_dir: Path, sets: Sequence[str], given: "Mapping[str, Value]") -> "AppSettings":
    """Return the settings that the run in a folder began with, changed by what is given now."""
    from persephonee.fl_app.settings.app_settings import AppSettings
    from persephonee.fl_app.simulation.resuming import kept_config

    changes = {**_set_keys(sets), **given, "run-dir": str(run_dir), "resume": True, "overwrite": False}
    kept = kept_config(run_dir, changes)
    return settings_of_run(changes, (), None) if kept is None else AppSettings.from_run_config({**kept, **changes})


def read_config(file: Path) -> dict[str, Any]:
    """Return the keys in a TOML file, or in the config.json of an earlier run, under their present names."""
    from persephonee.fl_app.settings.run_config import with_present_names
    from persephonee.multi_exit.checked_json import parse_json_object, without_digest

    try:
        text = file.read_text(encoding="utf-8")
        config = without_digest(parse_json_object(text)) if file.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--config {file} cannot be read ({error}); give a TOML file of keys.") from None
    if file.suffix == ".json":
        config = {key: value for key, value in config.items() if key not in (*NOT_SETTINGS, *NEVER_FROM_A_RECORD)}
    return with_present_names(config)


def keys_among(words: Sequence[str]) -> list[str]:
    """Return words of the command line that are no options of the verb, `--KEY VALUE`, as `--set` takes them.

    Raises:
        typer.BadParameter: a word belongs to no key, or a key has no value.
    """
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise typer.BadParameter(f"{word} belongs to no option; see --help for what simulate takes.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise typer.BadParameter(f"--{key} is no option, and a setting needs a value: write --set {key}=VALUE.")
            value = rest.pop(0)
        found.append(f"{key}={value}")
    return found


def _set_keys(sets: Sequence[str]) -> "dict[str, Value]":
    from persephonee.fl_app.settings.app_settings import AppSettings
    from persephonee.fl_app.settings.run_config import RENAMED, from_text

    found: dict[str, Value] = {}
    for word in sets:
        key, equals, text = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {word} sets nothing; write it as KEY=VALUE, such as epochs=5.")
        name = RENAMED.get(key.strip(), key.strip())
        found[name] = from_text(AppSettings, name, text.strip())
    return found
