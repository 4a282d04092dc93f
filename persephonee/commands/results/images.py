"""Images of one's own for `evaluate` and `predict`: files, folders, and folders of classes."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from persephonee.commands.results.engines import OpenedEngine
    from persephonee.server.training.remaining_time import Told


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are named, and the images in the folders that are named, sorted within each.

    Raises:
        typer.BadParameter: a path is missing, or there is no image.
        DataError: an image is a pipe or a device.
    """
    from persephonee.data_partitions.image_decoder import IMAGE_SUFFIXES
    from persephonee.data_partitions.safe_files import visible_files

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise typer.BadParameter(f"there is no {path}: name images, or folders of images.")
        if path.is_dir():
            found += visible_files(path, path.rglob("*"), lambda file: file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found.append(path)
    if not found:
        raise typer.BadParameter("there is no image in what was named: name images, or folders of images.")
    return found


def batches_of(
    files: Sequence[Path], shape: tuple[int, int, int], size: int, told: "Told"
) -> "Iterator[tuple[Sequence[Path], NDArray[np.uint8]]]":
    """Yield files and their pixels, uint8 [B, C, H, W], at most `size` at a time, and tell how many are answered.

    Raises:
        ImageError: a file is no image, or of another size than the network's.
    """
    import numpy as np

    from persephonee.clients.runtime.image_file import check_head, read_image

    # the last one's mistake is said before the first one is answered
    for file in files:
        check_head(file, shape)
    for start in range(0, len(files), size):
        part = files[start : start + size]
        yield part, np.stack([np.asarray(read_image(file, shape)) for file in part])
        told(start + len(part), len(files))


def labelled_batches(
    folder: Path, opened: "OpenedEngine", size: int, told: "Told"
) -> "Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]":
    """Yield the images of a folder of class folders, and the numbers that the model has for their classes.

    Raises:
        DataError: the folder holds no class folders.
        ImageError: a file is no image, or of another size than the network's.
        typer.BadParameter: a class is not the model's.
    """
    import numpy as np

    from persephonee.data_partitions.sources.image_sets import ClassFolders

    if not folder.is_dir():
        raise typer.BadParameter(f"--images {folder} is no folder: give one with a folder of images for each class.")
    found = ClassFolders(folder)
    numbers = np.array([_number_of(name, opened) for name in found.class_names], dtype=np.int64)
    files = [Path(found.describe_row(row)) for row in range(len(found.labels))]
    done = 0
    for part, pixels in batches_of(files, opened.engine.input_shape, size, told):
        yield pixels, numbers[found.labels[done : done + len(part)]]
        done += len(part)


def _number_of(name: str, opened: "OpenedEngine") -> int:
    names = opened.class_names or tuple(str(number) for number in range(opened.engine.num_classes))
    if name not in names:
        raise typer.BadParameter(
            f"the folder {name!r} is none of the model's classes, which are {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}: call each folder what the model calls its class."
        )
    return names.index(name)
