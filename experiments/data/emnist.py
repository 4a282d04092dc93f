"""EMNIST by writer: NIST's MATLAB file, the only one with the writers, becomes users of the hub's FEMNIST format.

    python -m persephonee.experiments.data.emnist --files downloads/emnist --out data/emnist-by-writer --download

A row of OUT/train.parquet: `image` (PNG, 28x28, white paper = 255), `writer_id` (`w0123`) and `character` (62 classes
in FEMNIST's order, as EMNIST's ByClass numbers them). EMNIST holds all of NIST's Special Database 19, the source of
FEMNIST, prepared in another way. Reading MATLAB's files needs scipy: `pip install "persephonee[data]"`.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from persephonee.commands.terminal import run_program
from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.sources.published_sets import FEMNIST_CLASSES
from persephonee.experiments.data.hub_parquet import Row, as_png, hub_schema, require_free, write_rows
from persephonee.experiments.data.publisher_files import AnyFiles, Download, Fetching, Files, PublisherFile
from persephonee.multi_exit.atomic_files import new_folder_atomically

PUBLISHED = 814_255
"""Characters of ByClass, 697,932 for training and 116,323 for tests (arXiv 1702.05373)."""

MEMBER = "matlab/emnist-byclass.mat"

ARCHIVE = PublisherFile(
    name="matlab.zip",
    url="https://biometrics.nist.gov/cs_links/EMNIST/matlab.zip",
    # NIST states none
    checksum="sha256:e1fa805cdeae699a52da0b77c2db17f6feb77eed125f9b45c022e7990444df95",
    stated_by="MLDatasets.jl",
)


def read_matlab(data: bytes) -> dict[str, dict[str, Any]]:
    """Return the arrays `images`, `labels` and `writers` of `train` and of `test`.

    Raises:
        BrokenDataError: the file is no such file.
        ModuleNotFoundError: scipy is not installed.
    """
    from scipy.io import loadmat

    try:
        dataset = loadmat(io.BytesIO(data), simplify_cells=True, variable_names=["dataset"])["dataset"]
        return {part: {name: dataset[part][name] for name in ("images", "labels", "writers")} for part in PARTS}
    except Exception as error:  # the reader raises a dozen kinds of errors for a damaged file
        raise BrokenDataError(f"EMNIST's MATLAB file cannot be read ({error}): fetch it again.") from error


PARTS = ("train", "test")


def rows_of(images: Any, labels: Any, writers: Any) -> Iterator[Row]:
    """Yield the rows of one part.

    Args:
        images: shape [N, 784], ink on black paper, each stored column by column.
        labels: shape [N], in [0, 62).
        writers: shape [N], NIST's numbers.

    Raises:
        BrokenDataError: the shapes or the labels are others.
    """
    # the reader drops an axis of length 1
    images = np.atleast_2d(images)
    labels, writers = np.ravel(labels).astype(np.int64), np.ravel(writers).astype(np.int64)
    if images.shape != (len(labels), 784) or images.dtype != np.uint8 or len(writers) != len(labels):
        raise BrokenDataError(
            f"Expected uint8 images [N, 784] with a label and a writer each, got {images.dtype} {list(images.shape)}, "
            f"{len(labels)} labels and {len(writers)} writers."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(FEMNIST_CLASSES):
        raise BrokenDataError(f"The labels reach from {labels.min()} to {labels.max()}, expected [0, 62).")
    for pixels, label, writer in zip(images, labels.tolist(), writers.tolist(), strict=True):
        image = 255 - pixels.reshape(28, 28).T
        yield {"image": as_png(np.ascontiguousarray(image)), "writer_id": f"w{writer:04d}", "character": label}


def main(
    *,
    files: Files,
    out: Annotated[Path, typer.Option(help="Folder for train.parquet; new or empty.")],
    download: Download = False,
    any_files: AnyFiles = False,
) -> None:
    """Write EMNIST by writer."""
    require_free(out)
    path = Fetching(folder=files, downloads=download, takes_any=any_files).obtain(ARCHIVE)
    try:
        with zipfile.ZipFile(path) as archive:
            parts = read_matlab(archive.read(MEMBER))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise BrokenDataError(f"{path} is no whole zip with {MEMBER} ({error}): fetch it again.") from error
    writers = {int(writer) for part in parts.values() for writer in np.ravel(part["writers"])}
    rows = (row for part in PARTS for row in rows_of(**parts[part]))
    columns = {"image": "image", "writer_id": "string", "character": FEMNIST_CLASSES}
    with new_folder_atomically(out) as made:
        count = write_rows(made / "train.parquet", hub_schema(columns), rows, 2000, "zstd")
    typer.echo(
        f"{out / 'train.parquet'}: {count:,} characters of {len(writers):,} writers; EMNIST was published with "
        f"{PUBLISHED:,} characters."
    )


if __name__ == "__main__":
    run_program(main)
