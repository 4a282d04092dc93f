"""JSON from a file that may be damaged or somebody else's: what is not plain, finite and small is refused."""

import hashlib
import json
import math
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_BYTES = 64 * 2**20
MAX_INTEGER = 2**64
DIGEST_KEY = "sha256"


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
        raise ValueError(f"its content is not that of its {DIGEST_KEY}, it has been changed or damaged")
    return rest


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
