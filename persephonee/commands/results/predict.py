"""`persephonee predict`: the labels of images, with the confidence and the exit of each."""

import csv
import io
import json
import logging
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import DEFAULT_SOURCES, Sources, compute_settings, runtime_settings
from persephonee.commands.results.engines import Exported, Model, Store, Threshold, open_engine

if TYPE_CHECKING:
    from rich.table import Table

    from persephonee.multi_exit.settings import ComputeSettings, RuntimeSettings

log = logging.getLogger("persephonee.predict")

COLUMNS = ("file", "label", "confidence", "exit")


class Format(StrEnum):
    """How the predictions are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@with_groups(runtime=runtime_settings, compute=compute_settings)
def predict(
    *,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    model: Model = None,
    store: Store = None,
    exported: Exported = None,
    threshold: Threshold = None,
    runtime: "RuntimeSettings",
    compute: "ComputeSettings",
    form: Annotated[Format, typer.Option("--format", help="How to print them.")] = Format.TABLE,
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """Predict the class of each image, and say how sure the network was and at which exit it answered.

    Images have to be of the model's size. Exits count from 0; the largest number is the original classifier's.
    """
    from persephonee.clients.inference.scoring import BATCH
    from persephonee.commands.results.images import batches_of, image_files
    from persephonee.server.training.remaining_time import shown_work

    opened = open_engine(model, store, exported, threshold, sources, runtime, compute)
    rows: list[dict[str, Any]] = []
    with shown_work(log, "answering", "images") as told:
        for files, pixels in batches_of(image_files(images), opened.engine.input_shape, BATCH, told):
            found = opened.engine.infer(pixels)
            for file, label, confidence, exit in zip(
                files, found.labels, found.confidences, found.exit_indices, strict=True
            ):
                answer = (str(file), opened.class_name(int(label)), float(confidence), int(exit))
                rows.append(dict(zip(COLUMNS, answer, strict=True)))
    if form is Format.JSON:
        typer.echo(json.dumps(rows, indent=2))
    elif form is Format.CSV:
        typer.echo(_csv(rows), nl=False)
    else:
        from rich.console import Console

        Console().print(_table(rows))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(rows: Sequence[dict[str, Any]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from persephonee.commands.errors import printable

    table = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("confidence", "exit") else "left", overflow="fold")
    for row in rows:
        # a file's name may have brackets, which are no markup, and letters that steer a terminal
        texts = [Text(printable(str(row[name]))) for name in ("file", "label")]
        table.add_row(*texts, f"{row['confidence']:.3f}", str(row["exit"]))
    return table
