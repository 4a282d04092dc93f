"""Bytes that somebody else sent: whatever their parsing raises becomes one refusal, and nothing is allocated on trust.

A parser of numpy's or of the standard library may raise anything on hostile bytes (IndentationError, RecursionError,
MemoryError), and one client's bytes must not end a run. So every parser of foreign bytes stands inside `refusing`.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from flwr.app import Array
from numpy.lib import format as npy
from numpy.typing import NDArray

from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire.limits import HEADER_BYTES

MOST_DIMENSIONS = 8


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever is raised inside into a WireError that names `what`; a WireError passes as it is."""
    try:
        yield
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"{what} cannot be read ({type(error).__name__}).") from None


def read_any_array(array: Array, what: str) -> NDArray[np.generic]:
    """Return the values of an array that arrived, of whatever shape, bounded by the bytes that it came in.

    Raises:
        WireError: its bytes are anything but a .npy file of numbers.
    """
    file = io.BytesIO(array.data)
    try:
        if npy.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, _, kind = npy.read_array_header_1_0(file, max_header_size=HEADER_BYTES)
        if kind.kind not in "biuf" or len(shape) > MOST_DIMENSIONS:
            raise ValueError("no numbers")
    except Exception:
        raise WireError(f"{what}: the bytes are no array.") from None
    return read_array(array, str(kind), shape, what)


def read_array(array: Array, dtype: str, shape: tuple[int, ...], what: str) -> NDArray[np.generic]:
    """Return the values of an array that arrived, which shares memory with its bytes.

    Args:
        array: as Flower delivers it; what it says of itself is not looked at.
        dtype: that the values must have, such as "float32".
        shape: that they must have.
        what: names the array in an error.

    Raises:
        WireError: its bytes are anything but a .npy file of that type and shape.
    """
    count = int(np.prod(shape, dtype=np.int64))
    expected = count * np.dtype(dtype).itemsize
    if not expected <= len(array.data) <= expected + HEADER_BYTES:
        raise WireError(f"{what}: expected {count} values of {dtype}, got {len(array.data)} bytes.")
    file = io.BytesIO(array.data)
    try:
        # the header first: np.load would make room for whatever shape it claims
        if npy.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        found, is_fortran, kind = npy.read_array_header_1_0(file, max_header_size=HEADER_BYTES)
    except Exception:
        raise WireError(f"{what}: the bytes are no array.") from None
    content = array.data[file.tell() :]
    if (str(kind), found, len(content)) != (dtype, shape, expected) or (is_fortran and len(shape) > 1):
        got = f"{kind} of shape {found} in {len(content)} bytes"
        raise WireError(f"{what}: expected {dtype} values, {count} of them, got {got}.")
    return np.frombuffer(content, dtype=dtype).reshape(shape)
