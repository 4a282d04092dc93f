"""Settings as flat keys and back: frozen dataclasses, nested or not, and the run configuration of Flower.

A key is the name of a field with hyphens. A run configuration holds strings, numbers and booleans, and no None: an
empty string stands for it. `-c` does not check types, so this does.
"""

import contextlib
import difflib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar

from persephonee.fl_app.errors import RunConfigError

Value = str | int | float | bool
Settings = TypeVar("Settings")

# `seed` seeds the run; the built-in writers have their own, so that runs with different seeds may share a model.
# Pretraining has users and a schedule as personalisation has them.
_RENAMED: Mapping[tuple[str, ...], str] = {("data", "seed"): "data-seed"}
_PREFIXED: Mapping[tuple[str, ...], str] = {
    ("pretraining", "training"): "pretrain-",
    ("pretraining", "users"): "pretrain-",
}
# What keys were called in runs of former versions.
RENAMED: Mapping[str, str] = {
    "class-width": "label-skew-width",
    "unseen-share": "held-out-fraction",
    "min-reply-share": "min-reply-fraction",
    "enough-share": "enough-fraction",
    "sharing-share": "sharing-fraction",
    "trimmed-share": "trimmed-fraction",
    "global-share": "global-fraction",
}
"""Settings that version 0.1 called otherwise, as options and in the files that it wrote."""

_FORMER: Mapping[str, str] = {
    **RENAMED,
    "num-server-rounds": "rounds",
    "max-users": "pretrain-max-users",
    "personal-users": "pretrain-personal-users",
    "validation-fraction": "pretrain-validation-fraction",
}
# These follow from other settings.
_DERIVED = {("personalisation", "weights"), ("pretraining", "sources"), ("pretraining", "training", "seed")}


def from_flat(cls: type[Settings], config: Mapping[str, Value]) -> Settings:
    """Build the dataclass `cls` from flat keys; those that are missing keep their defaults.

    Raises:
        RunConfigError: an unknown key, a wrong type, or a value out of range; one sentence.
    """
    keys = _leaves(cls)
    values: dict[tuple[str, ...], Any] = {}
    for key, value in config.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(keys))}."
            hint = f"it is called {_FORMER[key]} now." if key in _FORMER else hint
            raise RunConfigError(f"{key} is no run-config key; {hint}")
        values[keys[key].path] = parse_value(key, value, keys[key].types)
    try:
        return typing.cast(Settings, _built(cls, values, ()))
    except ValueError as error:
        raise RunConfigError(str(error)) from None


def to_flat(settings: Any) -> dict[str, Value]:
    """Return all values of a settings object under their flat keys."""
    return {key: flat_value(key, _at(settings, leaf.path)) for key, leaf in _leaves(type(settings)).items()}


def with_present_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that a former version wrote, under the keys of this one."""
    return {_FORMER.get(key, key): value for key, value in config.items()}


def from_text(cls: type, key: str, text: str) -> Value:
    """Return what a text, such as that of `--set KEY=VALUE`, means for a key: a number, true or false, or the text.

    Whether it fits is checked when the settings are made.
    """
    leaf = _leaves(cls).get(key)
    if leaf is None or (text == "" and NoneType in leaf.types):
        return text
    if bool in leaf.types:
        return {"true": True, "false": False}.get(text.lower(), text)
    for kind in (int, float):
        if kind in leaf.types and key != "labels":
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


def keys_below(cls: type, *fields: str) -> tuple[str, ...]:
    """Return the flat keys of everything in the named fields of a settings class."""
    return tuple(key for key, leaf in _leaves(cls).items() if leaf.path[0] in fields)


def key_of(name: str) -> str:
    """Return the flat key of a field."""
    return name.replace("_", "-")


@dataclass(frozen=True)
class _Leaf:
    path: tuple[str, ...]
    """Names of the fields that lead to the value."""
    types: tuple[type, ...]
    """What the value may be; NoneType among them where it may be left empty."""


def _leaves(cls: type, path: tuple[str, ...] = ()) -> dict[str, _Leaf]:
    leaves: dict[str, _Leaf] = {}
    for name, kind in typing.get_type_hints(cls).items():
        here = (*path, name)
        if here in _DERIVED:
            continue
        if is_dataclass(kind):
            found = _leaves(typing.cast(type, kind), here)
        else:
            key = _RENAMED.get(here, _PREFIXED.get(path, "") + key_of(name))
            found = {key: _Leaf(here, types_of(kind))}
        if twins := leaves.keys() & found.keys():
            raise TypeError(f"two settings share the run-config key {min(twins)}")
        leaves.update(found)
    return leaves


def types_of(kind: Any) -> tuple[type, ...]:
    """Return what a value of a field's type may be in Python; NoneType among them where it may be left empty."""
    if typing.get_origin(kind) is typing.Literal:
        # the settings themselves know which strings they take
        return (str,)
    if typing.get_origin(kind) is tuple:
        # numbers, which a run configuration holds as a string with commas
        return (tuple,)
    return typing.get_args(kind) if isinstance(kind, UnionType) else (kind,)


def parse_value(key: str, value: Value, types: tuple[type, ...]) -> Any:
    """Return what a flat value means for a field that holds one of `types`.

    Raises:
        RunConfigError: it has another type.
    """
    if key == "labels":
        return parse_labels(value)
    if tuple in types:
        return _numbers(key, value)
    if value == "" and NoneType in types:
        return None
    for kind in types:
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is kind:
            return value
    names = " or ".join({Path: "a path", NoneType: "an empty string"}.get(t, t.__name__) for t in types)
    raise RunConfigError(f"{key}={value!r} is {type(value).__name__}; expected {names}.")


def _numbers(key: str, value: Value) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in str(value).split(",") if part.strip())
    except ValueError:
        raise RunConfigError(f"{key}={value!r} is not known; expected numbers with commas, such as 0.5,0.5.") from None


def parse_labels(value: Value) -> float:
    """Return the labelled fraction that `all`, `none` or a fraction such as 0.25 means.

    Raises:
        RunConfigError: it is none of these.
    """
    try:
        share = {"all": 1.0, "none": 0.0}.get(str(value))
        share = float(value) if share is None and not isinstance(value, bool) else share
    except (TypeError, ValueError):
        share = None
    if share is None or not 0 <= share <= 1:
        raise RunConfigError(f"labels={value!r} is not known; say all, none, or a fraction in [0, 1].")
    return share


def flat_value(key: str, value: Any) -> Value:
    """Return a field's value as a run configuration holds it."""
    if key == "labels":
        return {1.0: "all", 0.0: "none"}.get(value, str(value))
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, Path) else typing.cast(Value, value)


def _built(cls: type, values: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    arguments: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        here = (*path, name)
        if here in _DERIVED:
            continue
        if is_dataclass(kind):
            arguments[name] = _built(typing.cast(type, kind), values, here)
        elif here in values:
            arguments[name] = values[here]
    return cls(**arguments)


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        settings = getattr(settings, name)
    return settings


def toml_value(value: Value) -> str:
    """Return a setting as TOML writes it."""
    if isinstance(value, str):
        # a JSON string is a TOML string, apart from DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
