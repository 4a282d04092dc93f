"""Make one global model that the benchmarks need.

python -m persephonee.benchmarks.make_models --kind KIND DATA --out DIR
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from persephonee.benchmarks.bench_models import EFFORTS, photo_model, pooled_model, writers_model
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import data_settings
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.settings import DataSettings
from persephonee.multi_exit.atomic_files import check_writable


@with_groups(data=data_settings)
def main(
    *,
    kind: Annotated[Literal["writers", "pooled", "mobilenet_v2", "resnet50"], typer.Option(help="Which model.")],
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    data: DataSettings,
    scale: Annotated[Literal["smoke", "quick"], typer.Option(help="For how long it learns.")] = "quick",
    model: Annotated[Path | None, typer.Option(help="pooled: the model whose backbone it takes.")] = None,
    real_data: Annotated[Path | None, typer.Option(help="Photographs and published weights.")] = None,
    photos: Annotated[int | None, typer.Option(help="Photographs to train on; the scale's by default.")] = None,
) -> None:
    """Train the model, unless it is there."""
    effort = EFFORTS[scale] if photos is None else replace(EFFORTS[scale], photos=photos)
    check_writable(out)
    if kind == "writers":
        writers_model(data, out, effort)
    elif kind == "pooled" and model is not None:
        pooled_model(model, data, out, effort)
    elif real_data is not None:
        photo_model(kind, data, real_data, out, effort)
    else:
        raise typer.BadParameter(f"--kind {kind} needs --model or --real-data.")


if __name__ == "__main__":
    run_program(main)
