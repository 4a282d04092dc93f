"""From what a table's cell holds to pixels: encoded bytes, a path, a PIL image or nested lists."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.image_decoder import Pixels, is_grey, open_image, to_bytes, to_pixels
from persephonee.data_partitions.limits import MAX_IMAGE_BYTES, MAX_USER_BYTES
from persephonee.data_partitions.safe_files import path_below, read_file


def number_of_channels(cell: Any, folder: Path) -> int:
    """Return 1 for a grey image and 3 for a coloured one, without decoding its pixels where it is encoded.

    Raises:
        ValueError: the cell is no image; the text says why and leaves naming the row to the caller.
    """
    if isinstance(cell, list | np.ndarray):
        return 1 if _from_lists(cell).shape[0] == 1 else 3
    return 1 if is_grey(_open(cell, folder)) else 3


def decode(cell: Any, channels: int, folder: Path) -> Pixels:
    """Return a cell as uint8 pixels, shape [channels, H, W].

    Args:
        cell: Hugging Face's {"bytes", "path"}, encoded bytes, a path as text, a PIL image, or nested lists [H, W],
            [H, W, C] or [C, H, W] (a flat list is a square), integers in [0, 255] or floats in [0, 1].
        channels: 1 or 3; an image of the other kind is converted.
        folder: where relative paths start; no path may lead out of it.

    Raises:
        ValueError: the cell is no image; the text says why and leaves naming the row to the caller.
    """
    if isinstance(cell, list | np.ndarray):
        pixels = _from_lists(cell)
        if pixels.shape[0] != channels:
            raise ValueError(f"it has {pixels.shape[0]} channels and the first image {channels}")
        return pixels
    return to_pixels(_open(cell, folder), channels)


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


def refuse_too_many(count: int, shape: tuple[int, int, int], client_id: str) -> None:
    """Refuse to decode more images of one user than fit into memory.

    Raises:
        BrokenDataError: they would take more than MAX_USER_BYTES.
    """
    needed = count * math.prod(shape)
    if needed > MAX_USER_BYTES:
        raise BrokenDataError(
            f"User {client_id} has {count} images of {_size(shape)}, {needed / 2**30:.0f} GiB in memory; "
            f"expected at most {MAX_USER_BYTES // 2**30} GiB, so give smaller or fewer images."
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} px"


def _open(cell: Any, folder: Path) -> Image.Image:
    if isinstance(cell, Image.Image):
        return cell
    encoded = cell.get("bytes") if isinstance(cell, dict) else cell
    named = cell.get("path") if isinstance(cell, dict) and encoded is None else cell
    if isinstance(named, str) and named:
        encoded = _read_image(folder, named)
    if not isinstance(encoded, bytes):
        kind = "nothing" if not encoded else f"{type(encoded).__name__}, which is no image"
        raise ValueError(f"it holds {kind}; give encoded bytes, or a path below {folder}")
    return open_image(encoded)


def _read_image(folder: Path, named: str) -> bytes:
    short = named if len(named) <= 60 else f"{named[:57]}..."
    try:
        return read_file(path_below(folder, named), MAX_IMAGE_BYTES)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ValueError(f"its file {short!r} {reason}; give encoded bytes, or a path below {folder}") from error


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
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        # as torch holds an image
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(f"its shape is {list(array.shape)}, not [H, W] or [H, W, 1 or 3]")
    return np.ascontiguousarray(to_bytes(array).transpose(2, 0, 1))
