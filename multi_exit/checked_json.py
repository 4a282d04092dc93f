"""JSON from a file that may be damaged or somebody else's: what is not plain, finite and small is refused.

What we write carries a digest of itself, here and in the headers of safetensors files, and whoever reads it compares.
Files of earlier versions have none, and are read.
"""

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from persephonee.multi_exit.atomic_files import write_json_atomically

MAX_JSON_BYTES = 64 * 2**20
MAX_INTEGER = 2**64
DIGEST_KEY = "sha256"
_CHANGED = f"its content is not that of its {DIGEST_KEY}, it has been changed or damaged"


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file or too long, or it holds something else: another type than an object, a number
            that is infinite, no number or beyond 64 bits, brackets that are nested without end, a wrong digest.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        # a pipe would be waited for
        raise ValueError("it is no regular file")
    if found.st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has {found.st_size} bytes, expected at most {MAX_JSON_BYTES}")
    return parse_json_object(path.read_bytes())


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """Return the object in a JSON text, checked as `read_json_object` checks it.

    Raises:
        ValueError: it holds something else.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_integer)
    except RecursionError:
        raise ValueError("its brackets are nested without end") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got a {type(value).__name__}")
    return value


def write_with_digest(path: Path, values: Mapping[str, Any], *, private: bool = False) -> None:
    """Write JSON with its digest, atomically, for `read_with_digest`."""
    # through JSON, so that the digest is of what a reader finds
    write_json_atomically(path, with_digest(json.loads(json.dumps(dict(values)))), private=private)


def read_with_digest(path: Path) -> dict[str, Any]:
    """Return what `write_with_digest` was given, or what a file of an earlier version holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    return without_digest(read_json_object(path))


def arrays_header(state: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Return the header of a safetensors file: a text, and the digest of it and of the arrays."""
    return {"state": state, DIGEST_KEY: _digest_of_arrays(state, arrays)}


def checked_state(header: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the text in a header that `arrays_header` made.

    Raises:
        KeyError: there is none.
        ValueError: text or arrays are not those that the digest was made of.
    """
    state = header["state"]
    found = _digest_of_arrays(state, arrays)
    # a flipped bit in the digest's own name must not make the file one of an earlier version
    if header.get(DIGEST_KEY, found) != found or (DIGEST_KEY not in header and found in header.values()):
        raise ValueError(_CHANGED)
    return state


def with_digest(values: dict[str, Any]) -> dict[str, Any]:
    """Return JSON values with the SHA-256 of all of them, which `without_digest` checks."""
    return {**values, DIGEST_KEY: _digest(values)}


def without_digest(values: dict[str, Any]) -> dict[str, Any]:
    """Return what was given to `with_digest`; values that carry no digest, as earlier versions wrote them, as they are.

    Raises:
        ValueError: the values are not those that the digest was made of.
    """
    rest = {key: value for key, value in values.items() if key != DIGEST_KEY}
    if DIGEST_KEY in values and values[DIGEST_KEY] != _digest(rest):
        raise ValueError(_CHANGED)
    if DIGEST_KEY not in values and any(_is_digest_of(key, values) for key in values):
        # a flipped bit in the digest's own name must not make the file one of an earlier version
        raise ValueError(_CHANGED)
    return rest


def _is_digest_of(name: str, values: Mapping[str, Any]) -> bool:
    """Return whether the value called `name` is the digest of the others."""
    value = values[name]
    is_like_one = isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
    return is_like_one and value == _digest({key: other for key, other in values.items() if key != name})


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digest_of_arrays(state: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 21 else MAX_INTEGER
    if abs(value) >= MAX_INTEGER:
        raise ValueError(f"the number {text[:20]} is too large")
    return value
