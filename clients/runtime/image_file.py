"""An image file as a device reads it: decoded as every source of data decodes, and of the size that the model takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from persephonee.clients.errors import ImageError
from persephonee.clients.runtime.labels_file import key_of
from persephonee.data_partitions.image_decoder import open_image, to_pixels
from persephonee.data_partitions.limits import MAX_IMAGE_BYTES
from persephonee.data_partitions.safe_files import read_file


def check_head(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuse an image file by its head alone, which takes a fraction of what decoding takes.

    Raises:
        ImageError: the file is no image, or of another size than the model's.
    """
    with _opened(path, shape):
        pass


@contextmanager
def _opened(path: Path, shape: tuple[int, int, int]) -> Iterator[Image.Image]:
    """Yield an image whose head was read; what goes wrong with it is said of the file."""
    _, height, width = shape
    name = key_of(path.name)
    try:
        with open_image(read_file(path, MAX_IMAGE_BYTES)) as image:
            # a photograph may lie on its side until it is decoded
            if sorted(image.size) != sorted((width, height)):
                raise _wrong_size(name, image.size, (width, height))
            yield image
    except FileNotFoundError:
        raise ImageError(f"{name} has gone before it was read: leave files in place.") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror}): give a file that this program may read.") from None
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"{name} is no image that can be read ({error}): remove it, or write it again.") from None


def read_image(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return an image file as uint8 [C, H, W], decoded as every source of data decodes its images.

    Colours become grey, and grey becomes three equal channels, as the model takes them. The size must be the model's:
    how to crop a photograph is not for this program to guess.

    Raises:
        ImageError: the file is no image, of another size, or of a range that is not known.
    """
    channels, height, width = shape
    name = key_of(path.name)
    with _opened(path, shape) as image:
        pixels = to_pixels(image, channels)
    if pixels.shape[1:] != (height, width):
        raise _wrong_size(name, (pixels.shape[2], pixels.shape[1]), (width, height))
    return pixels


def _wrong_size(name: str, size: tuple[int, int], expected: tuple[int, int]) -> ImageError:
    return ImageError(
        f"{name} is {size[0]}x{size[1]} px, expected {expected[0]}x{expected[1]}: crop and scale it first."
    )
