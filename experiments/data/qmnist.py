"""QMNIST with NIST's writer ids: MNIST's images and QMNIST's label files become users of the hub's FEMNIST format.

    python -m persephonee.experiments.data.qmnist --files downloads/qmnist --out data/qmnist-by-writer --download

A row of OUT/train.parquet: `image` (PNG, 28x28, white paper = 255 as in FEMNIST; MNIST's paper is black), `writer_id`
(`hsf4_w2154`: NIST's series and writer), `hsf_id` (0 are employees of the census, 4 students of a high school) and
`character` (10 classes). First come the rows of MNIST's training files and then those of its test files, in their
order.
"""

import gzip
import lzma
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from persephonee.commands.terminal import run_program
from persephonee.data_partitions.errors import BrokenDataError
from persephonee.experiments.data.hub_parquet import Row, as_png, hub_schema, require_free, write_rows
from persephonee.experiments.data.publisher_files import AnyFiles, Download, Fetching, Files, PublisherFile
from persephonee.multi_exit.atomic_files import new_folder_atomically

MEASURED = (60_841, 736)
"""Digits and writers on which docs/results.md was measured."""

NOT_MEASURED = frozenset(
    {
        *(1, 2, 15, 27, 38, 39, 48, 50, 67, 76, 82, 94, 99, 100, 109, 110, 112, 116, 120, 136, 140, 164, 169, 170),
        *(173, 195, 208, 211, 212, 213, 216, 219, 235, 240, 272, 276, 334, 338, 341, 354, 359, 363),
        *(2102, 2126, 2131, 2132, 2133, 2139, 2143, 2148, 2150, 2164, 2168, 2169, 2178, 2191, 2198, 2199, 2202),
        *(2213, 2219, 2221, 2234, 2244, 2245, 2246, 2253, 2260, 2262, 2264, 2265, 2266, 2282, 2288, 2289, 2304),
        *(2318, 2321, 2325, 2328, 2342, 2350, 2354, 2372, 2389, 2397, 2422, 2430, 2435, 2444, 2469, 2470, 2494),
        *(2504, 2505, 2537, 2569, 2580, 2596),
    }
)
"""NIST's numbers of writers that our copy lacks: about one in eight, some of whom may have no digit in MNIST at all."""

PARTS = (
    ("train-images-idx3-ubyte.gz", "qmnist-train-labels-idx2-int.gz"),
    ("t10k-images-idx3-ubyte.gz", "qmnist-test-labels-idx2-int.gz"),
)
"""Images and labels; of QMNIST's 60,000 test labels the first 10,000 are those of MNIST's test images."""

_IDX_TYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}


def publisher_files() -> dict[str, PublisherFile]:
    """Return MNIST's and QMNIST's files by name, with the checksums that torchvision states."""
    from torchvision.datasets import MNIST, QMNIST

    known = [(MNIST.mirrors[0] + name, md5) for name, md5 in MNIST.resources]
    known += [resource for part in ("train", "test") for resource in QMNIST.resources[part]]
    files = {
        url.rpartition("/")[2]: PublisherFile(
            name=url.rpartition("/")[2], url=url, checksum=f"md5:{md5}", stated_by="torchvision"
        )
        for url, md5 in known
    }
    return {name: files[name] for part in PARTS for name in part}


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array of an IDX file, plain or compressed: uint8 or big-endian int32.

    Raises:
        BrokenDataError: the file is none, or is cut off.
    """
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as file:
            zeros, kind, dimensions = np.frombuffer(file.read(4), dtype=">u2,u1,u1")[0]
            if zeros or kind not in _IDX_TYPES or not 1 <= dimensions <= 3:
                raise ValueError("it does not begin as an IDX file of bytes or integers")
            shape = np.frombuffer(file.read(4 * dimensions), dtype=">u4").tolist()
            size = math.prod(shape) * _IDX_TYPES[kind].itemsize
            # no more than the header promises, whatever it decompresses to
            data = file.read(size + 1)
        if len(data) != size:
            raise ValueError(f"it holds {len(data)} bytes or more where its header says {size}")
        array: NDArray[Any] = np.frombuffer(data, dtype=_IDX_TYPES[kind]).reshape(shape)
        return array
    except (OSError, EOFError, ValueError, IndexError, lzma.LZMAError) as error:
        raise BrokenDataError(f"{path} cannot be read ({error}): fetch it again.") from error


def rows_of(images: NDArray[np.uint8], labels: NDArray[np.int32], every_writer: bool) -> Iterator[Row]:
    """Yield the rows of some digits.

    Args:
        images: shape [N, H, W], ink on black paper.
        labels: shape [N or more, 8]: the class, NIST's series and writer, and what is not used here.
        every_writer: also those on whom docs/results.md was not measured.

    Raises:
        BrokenDataError: the two do not fit.
    """
    if images.ndim != 3 or labels.ndim != 2 or labels.shape[1] != 8 or len(labels) < len(images):
        raise BrokenDataError(
            f"Expected images [N, H, W] and labels [N or more, 8], got {list(images.shape)} and {list(labels.shape)}."
        )
    for pixels, (label, series, writer, *_) in zip(images, labels.tolist(), strict=False):
        if every_writer or writer not in NOT_MEASURED:
            yield {
                "image": as_png(255 - pixels),
                "writer_id": f"hsf{series}_w{writer:04d}",
                "hsf_id": series,
                "character": label,
            }


def main(
    *,
    files: Files,
    out: Annotated[Path, typer.Option(help="Folder for train.parquet; new or empty.")],
    download: Download = False,
    any_files: AnyFiles = False,
    all_writers: Annotated[
        bool, typer.Option("--all-writers", help="Also the writers on whom docs/results.md was not measured.")
    ] = False,
) -> None:
    """Write QMNIST by writer."""
    require_free(out)
    fetching = Fetching(folder=files, downloads=download, takes_any=any_files)
    paths = {name: fetching.obtain(file) for name, file in publisher_files().items()}
    writers: set[str] = set()

    def rows() -> Iterator[Row]:
        for images, labels in PARTS:
            for row in rows_of(read_idx(paths[images]), read_idx(paths[labels]), all_writers):
                writers.add(row["writer_id"])
                yield row

    columns = {"image": "image", "writer_id": "string", "hsf_id": "int64", "character": [*map(str, range(10))]}
    with new_folder_atomically(out) as made:
        count = write_rows(made / "train.parquet", hub_schema(columns), rows(), 2000, "zstd")
    typer.echo(
        f"{out / 'train.parquet'}: {count:,} digits of {len(writers)} writers; docs/results.md was measured on "
        f"{MEASURED[0]:,} of {MEASURED[1]}."
    )


if __name__ == "__main__":
    run_program(main)
