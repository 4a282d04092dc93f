"""From what a table's cell holds to pixels: encoded bytes, a path, a PIL image or nested lists."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from persephonee.data_partitions.errors import BrokenDataError

Pixels = NDArray[np.uint8]
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "F"})


def number_of_channels(cell: Any, folder: Path) -> int:
    """Return 1 for a grey image and 3 for a coloured one, without decoding its pixels where it is encoded.

    Raises:
        ValueError: the cell is no image; the text says why and leaves naming the row to the caller.
    """
    if isinstance(cell, list | np.ndarray):
        return 1 if _from_lists(cell).shape[0] == 1 else 3
    with _open(cell, folder) as image:
        return 1 if image.mode in GREY_MODES else 3


def decode(cell: Any, channels: int, folder: Path) -> Pixels:
    """Return a cell as uint8 pixels, shape [channels, H, W].

    Args:
        cell: Hugging Face's {"bytes", "path"}, encoded bytes, a PIL image, or nested lists [H, W] or [H, W, C]
            (a flat list is a square), integers in [0, 255] or floats in [0, 1].
        channels: 1 or 3; an image of the other kind is converted.
        folder: where relative paths start.

    Raises:
        ValueError: the cell is no image; the text says why and leaves naming the row to the caller.
    """
    if isinstance(cell, list | np.ndarray):
        pixels = _from_lists(cell)
        if pixels.shape[0] != channels:
            raise ValueError(f"it has {pixels.shape[0]} channels and the first image {channels}")
        return pixels
    with _open(cell, folder) as image:
        try:
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"it does not decode ({error})") from error
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def stack(pixels: list[Pixels], shape: tuple[int, int, int], client_id: str) -> Pixels:
    """Return the images as one array [N, C, H, W].

    Raises:
        BrokenDataError: an image of another shape than (C, H, W).
    """
    for image in pixels:
        if image.shape != shape:
            raise BrokenDataError(
                f"User {client_id}: an image is {_size(image.shape)} and the data set's first one is {_size(shape)}; "
                "scale all images to one size."
            )
    return np.stack(pixels) if pixels else np.empty((0, *shape), dtype=np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} px"


def _open(cell: Any, folder: Path) -> Image.Image:
    if isinstance(cell, Image.Image):
        return cell.copy()
    source: io.BytesIO | Path
    if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
        source = folder / str(cell["path"])
    else:
        encoded = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(encoded, bytes):
            raise ValueError("it is empty" if encoded is None else f"it holds {type(encoded).__name__}, not an image")
        source = io.BytesIO(encoded)
    try:
        return Image.open(source)
    except FileNotFoundError as error:
        raise ValueError(f"its file {source} is missing") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it is too large ({error})") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError("it does not decode (no image format that Pillow knows)") from error


def _from_lists(cell: Any) -> Pixels:
    try:
        array = np.asarray(cell)
    except ValueError as error:
        raise ValueError("its rows differ in length") from error
    if array.dtype == object and array.size:
        array = np.asarray(array.tolist())
    if array.dtype.kind not in "uif":
        raise ValueError(f"it holds {array.dtype}, not numbers")
    if array.ndim == 1:
        side = math.isqrt(array.size)
        if side * side != array.size:
            raise ValueError(f"its {array.size} numbers are no square")
        array = array.reshape(side, side)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(f"its shape is {list(array.shape)}, not [H, W] or [H, W, 1 or 3]")
    return np.ascontiguousarray(to_bytes(array).transpose(2, 0, 1))


def to_bytes(array: NDArray[Any]) -> Pixels:
    """Return floats in [0, 1], or integers in [0, 255], as uint8 of the same shape.

    Raises:
        ValueError: a value outside its range.
    """
    top = 1.0 if array.dtype.kind == "f" else 255
    if array.size and not (array.min() >= 0 and array.max() <= top):
        raise ValueError(f"its values reach from {array.min()} to {array.max()}, not from 0 to {top:g}")
    return np.rint(array * 255).astype(np.uint8) if array.dtype.kind == "f" else array.astype(np.uint8)
