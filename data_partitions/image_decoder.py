"""From an encoded image to pixels, for every source of data and for the device: one file looks the same everywhere.

A photograph is turned upright as its camera marked it, transparency lies on white paper, and more than 8 bits a
channel are scaled by their range. What has no known range is refused.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from persephonee.data_partitions.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

Pixels = NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpeg", ".jpg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Pillow knows thirty more, one of which starts another program; users' images come in none of them."""

_GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"})


def open_image(encoded: bytes) -> Image.Image:
    """Return an image whose head was read and whose pixels were not.

    Raises:
        ValueError: it is no image, or too large; the text is half a sentence.
    """
    if len(encoded) > MAX_IMAGE_BYTES:
        raise ValueError(f"it is too large ({len(encoded)} bytes of at most {MAX_IMAGE_BYTES})")
    try:
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"it is too large ({error})") from error
    # Pillow's readers raise whatever odd bytes lead them to: OSError, ValueError, struct.error, RuntimeError, ...
    except Exception as error:
        raise ValueError(f"it does not decode (no image of {', '.join(_FORMATS)})") from error
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(f"it is too large ({image.width}x{image.height} px of at most {MAX_IMAGE_PIXELS} in all)")
    return image


def is_grey(image: Image.Image) -> bool:
    """Return whether an image has no colours, by its head alone."""
    return image.mode in _GREY_MODES


def to_pixels(image: Image.Image, channels: int) -> Pixels:
    """Decode an image.

    Args:
        image: that `open_image` returned, or one of a library.
        channels: 1 or 3; an image of the other kind is converted.

    Returns:
        uint8 [channels, H, W]; white paper is 255.

    Raises:
        ValueError: it does not decode, or its range is not known; the text is half a sentence.
    """
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(f"it is too large ({image.width}x{image.height} px of at most {MAX_IMAGE_PIXELS} in all)")
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        deep = upright.mode == "F" or upright.mode.startswith("I")
        shallow = None if deep else _on_paper(upright).convert("L" if channels == 1 else "RGB")
    # as above
    except Exception as error:
        raise ValueError(f"it does not decode ({error})") from error
    if shallow is None:
        return np.repeat(_eight_bits(upright, image.format)[None], channels, axis=0)
    array = np.array(shallow, dtype=np.uint8)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _on_paper(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    drawn = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)


def _eight_bits(image: Image.Image, written_as: str | None) -> Pixels:
    """Return deep grey as uint8 [H, W]: 16 bits by their range, floats in [0, 1] likewise."""
    if image.has_transparency_data:
        raise ValueError("it has both transparency and more than 8 bits a channel; save it with 8 bits a channel")
    array = np.asarray(image)
    if image.mode == "F":
        return to_bytes(array)
    # Pillow holds 16 bits of a PGM file as 32; in other files nothing says what the largest number stands for
    if image.mode == "I" and (written_as not in ("PPM", "PNG") or array.min(initial=0) < 0 or array.max() > 65535):
        raise ValueError("it has 32 bits a channel, whose range is not known; save it with 8 or 16 bits a channel")
    # a camera's 10 or 12 bits in a file for 16 would be black: nothing says what its largest number stands for
    if 0 < array.max(initial=0) < 4096:
        raise ValueError(
            f"it has 16 bits a channel and no number above {array.max()}, as 12 bits of a camera do; scale it to 65535"
        )
    return np.rint(array.astype(np.float32) / 257).astype(np.uint8)


def to_bytes(array: NDArray[Any]) -> Pixels:
    """Return floats in [0, 1], or integers in [0, 255], as uint8 of the same shape.

    Raises:
        ValueError: a value outside its range.
    """
    is_float = array.dtype.kind == "f"
    top = 1.0 if is_float else 255
    if array.size and not (array.min() >= 0 and array.max() <= top):
        remedy = "; divide by 255" if is_float and 1 < array.max() <= 255 else ""
        raise ValueError(f"its values reach from {array.min()} to {array.max()}, not from 0 to {top:g}{remedy}")
    return np.rint(array * 255).astype(np.uint8) if is_float else array.astype(np.uint8)
