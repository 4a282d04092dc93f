"""Parquet as the Hugging Face hub stores image sets: encoded images, labels with names, and what else a row has."""

import io
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from persephonee.data_partitions.errors import DataError
from persephonee.multi_exit.atomic_files import names_in

Row = dict[str, Any]

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TYPES = {"image": IMAGE, "string": pa.string(), "int64": pa.int64()}


def hub_schema(columns: dict[str, str | Sequence[str]]) -> Any:
    """Return an Arrow schema that carries the hub's description of its columns.

    Args:
        columns: of each column `image`, `string` or `int64`, or the names of its classes.
    """
    fields, features = [], {}
    for name, kind in columns.items():
        if not isinstance(kind, str):
            fields.append((name, pa.int64()))
            features[name] = {"names": list(kind), "_type": "ClassLabel"}
            continue
        fields.append((name, _TYPES[kind]))
        features[name] = {"_type": "Image"} if kind == "image" else {"dtype": kind, "_type": "Value"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def write_rows(path: Path, schema: Any, rows: Iterable[Row], rows_per_group: int, compression: str) -> int:
    """Write rows as they come, a row group at a time, and return how many there were."""
    count = 0
    with pq.ParquetWriter(path, schema, compression=compression) as writer:
        remaining = iter(rows)
        while group := list(islice(remaining, rows_per_group)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=rows_per_group)
            count += len(group)
    return count


def encoded(data: bytes) -> Row:
    """Return the cell of an encoded image."""
    return {"bytes": data, "path": None}


def as_png(pixels: NDArray[np.uint8]) -> Row:
    """Return the cell of a grey image, shape [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return encoded(buffer.getvalue())


def require_free(folder: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        DataError: it does, or it is a file.
    """
    if names_in(folder) or (folder.exists() and not folder.is_dir()):
        raise DataError(f"{folder} is not empty: name another folder, or move this one away.")
