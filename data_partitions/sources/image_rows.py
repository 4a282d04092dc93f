"""Rows of an image set as pixels of three channels and one size."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.image_decoder import Pixels
from persephonee.data_partitions.sources.image_cells import decode, number_of_channels

if TYPE_CHECKING:
    # it needs pyarrow, which a pretraining on other data does without
    from persephonee.data_partitions.sources.image_sets import ImageSet

Rows = NDArray[np.int64]


def decode_rows(images: "ImageSet", rows: Rows, size: int | None) -> list[Pixels]:
    """Return the images of some rows, each uint8 [3, H, W], scaled and cropped to `size` px where it is given.

    Raises:
        BrokenDataError: an image that does not decode.
    """
    pixels = []
    for row, cell in zip(rows, images.cells(rows), strict=True):
        try:
            grey = isinstance(cell, list | np.ndarray) and number_of_channels(cell, images.folder_of(0)) == 1
            image = decode(cell, 1 if grey else 3, images.folder_of(int(row)))
        except ValueError as error:
            where = images.describe_row(int(row))
            raise BrokenDataError(f"The image in {where} cannot be used: {error}.") from error
        pixels.append(_fit(np.repeat(image, 3, axis=0) if grey else image, size))
    return pixels


def _fit(image: Pixels, size: int | None) -> Pixels:
    """Scale the shorter side of [3, H, W] to `size` px and cut the middle out of the longer one."""
    if size is None or image.shape[1:] == (size, size):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    cut = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.uint8)
    return np.ascontiguousarray(cut.transpose(2, 0, 1))
