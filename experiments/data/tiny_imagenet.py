"""Tiny ImageNet: Stanford's zip becomes train.parquet and validation.parquet, and classes.json says which classes.

    python -m persephonee.experiments.data.tiny_imagenet --files downloads/tiny-imagenet \
        --out data/tiny-imagenet-200 --download

A row has `image` (the JPEG as it is, 64 px) and `label`, the place of its class in wnids.txt. classes.json holds
`wnids` in this order and `imagenet1k_index`, the number of each among ImageNet's 1,000 classes, which the weights'
classifiers count by. The test images of the zip have no labels and are left out.
"""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from persephonee.commands.terminal import run_program
from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.limits import MAX_IMAGE_BYTES
from persephonee.experiments.data.hub_parquet import Row, encoded, hub_schema, require_free, write_rows
from persephonee.experiments.data.publisher_files import AnyFiles, Download, Fetching, Files, PublisherFile
from persephonee.multi_exit.atomic_files import new_folder_atomically, write_json_atomically

ROOT = "tiny-imagenet-200"
_TRAINING_IMAGE = re.compile(ROOT + r"/train/(?P<wnid>n\d+)/images/n\d+_(?P<number>\d+)\.JPEG")

ARCHIVE = PublisherFile(
    name="tiny-imagenet-200.zip",
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    # Stanford states none; this one stands in many libraries that fetch the file, such as Avalanche
    checksum="md5:90528d7ca1a48142e341f4ef8d21d0de",
    stated_by="Avalanche",
)

CLASS_INDEX = PublisherFile(
    name="imagenet_class_index.json",
    url="https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json",
    checksum="md5:c2c37ea517e94d9795004a39431a14cb",
    stated_by="Keras Applications",
)


def read_text(archive: zipfile.ZipFile, name: str) -> str:
    """Return a text file of the archive.

    Raises:
        BrokenDataError: it is not there, too large, or no text.
    """
    try:
        return _read(archive, name).decode()
    except UnicodeDecodeError as error:
        raise BrokenDataError(f"{name} of the zip is no text: fetch the zip again.") from error


def class_rows(archive: zipfile.ZipFile, wnids: Sequence[str], per_class: int) -> Iterator[Row]:
    """Yield the first training images of each class, class by class, in the order of wnids and of the files' numbers.

    Raises:
        BrokenDataError: a class has fewer, or an image cannot be read.
    """
    names: dict[str, dict[int, str]] = {}
    for found in filter(None, map(_TRAINING_IMAGE.fullmatch, archive.namelist())):
        names.setdefault(found["wnid"], {})[int(found["number"])] = found[0]
    for wnid in sorted(wnids):
        images = [name for _, name in sorted(names.get(wnid, {}).items())]
        if len(images) < per_class:
            raise BrokenDataError(
                f"Class {wnid} has {len(images)} training images, expected {per_class}: fetch the zip again."
            )
        for name in images[:per_class]:
            yield {"image": encoded(_read(archive, name)), "label": wnids.index(wnid)}


def validation_rows(archive: zipfile.ZipFile, wnids: Sequence[str], per_class: int) -> Iterator[Row]:
    """Yield the first validation images of each class, in the order of val_annotations.txt.

    Raises:
        BrokenDataError: an image cannot be read, or is of another class.
    """
    seen: Counter[str] = Counter()
    for line in read_text(archive, f"{ROOT}/val/val_annotations.txt").splitlines():
        name, wnid = (*line.split("\t"), "")[:2]
        if wnid not in wnids:
            raise BrokenDataError(f"{name} is of the class {wnid!r}, which wnids.txt lacks: fetch the zip again.")
        seen[wnid] += 1
        if seen[wnid] <= per_class:
            image = _read(archive, f"{ROOT}/val/images/{name}")
            yield {"image": encoded(image), "label": wnids.index(wnid)}


def imagenet_numbers(class_index: Path, wnids: Sequence[str]) -> list[int]:
    """Return the number of each class among ImageNet's 1,000.

    Args:
        class_index: Keras' file, `{"0": ["n01440764", "tench"], ...}`.
        wnids: the classes.

    Raises:
        BrokenDataError: the file is another, or lacks a class.
    """
    try:
        number_of = {str(wnid): int(number) for number, (wnid, _) in json.loads(class_index.read_text()).items()}
        return [number_of[wnid] for wnid in wnids]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BrokenDataError(f"{class_index} does not number the classes ({error}): fetch it again.") from None


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        if archive.getinfo(name).file_size > MAX_IMAGE_BYTES:
            raise ValueError(f"it takes more than {MAX_IMAGE_BYTES} bytes")
        return archive.read(name)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise BrokenDataError(f"{name} of the zip cannot be read ({error}): fetch the zip again.") from error


def write_tiny_imagenet(archive: zipfile.ZipFile, class_index: Path, out: Path, counts: tuple[int, int]) -> list[Any]:
    """Write the three files into a new folder, and return the numbers of training and validation rows.

    Args:
        archive: Stanford's zip.
        class_index: Keras' file.
        out: new or empty.
        counts: training and validation images of each class.

    Raises:
        DataError: a file is broken, or `out` holds something.
        OSError: `out` cannot be written.
    """
    require_free(out)
    wnids = read_text(archive, f"{ROOT}/wnids.txt").split()
    classes = {"wnids": wnids, "imagenet1k_index": imagenet_numbers(class_index, wnids)}
    schema, written = hub_schema({"image": "image", "label": wnids}), []
    with new_folder_atomically(out) as made:
        parts = (("train", class_rows, counts[0]), ("validation", validation_rows, counts[1]))
        for name, rows, per_class in parts:
            # a JPEG does not become smaller
            written.append(write_rows(made / f"{name}.parquet", schema, rows(archive, wnids, per_class), 1000, "none"))
        write_json_atomically(made / "classes.json", classes)
    return written


def main(
    *,
    files: Files,
    out: Annotated[Path, typer.Option(help="Folder for the three files; new or empty.")],
    train_per_class: Annotated[int, typer.Option(min=1, max=500, help="Training images of each class.")] = 200,
    validation_per_class: Annotated[int, typer.Option(min=1, max=50, help="Validation images of each class.")] = 25,
    download: Download = False,
    any_files: AnyFiles = False,
) -> None:
    """Write Tiny ImageNet, as many images of each class as docs/results.md was measured on; all are 500 and 50."""
    fetching = Fetching(folder=files, downloads=download, takes_any=any_files)
    path, class_index = fetching.obtain(ARCHIVE), fetching.obtain(CLASS_INDEX)
    try:
        with zipfile.ZipFile(path) as archive:
            counts = (train_per_class, validation_per_class)
            trained, validated = write_tiny_imagenet(archive, class_index, out, counts)
    except zipfile.BadZipFile as error:
        raise BrokenDataError(f"{path} is no whole zip ({error}): fetch it again.") from error
    typer.echo(f"{out}: {trained:,} training and {validated:,} validation images.")


if __name__ == "__main__":
    run_program(main)
