"""`persephonee figures`: the paper's figures, our numbers beside theirs."""

from pathlib import Path
from typing import Annotated

import typer


def figures(
    *,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAMES]", help="3a 3b 4 5 6a 6b 7 headline; all by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for pictures, tables, models and measurements.")],
    scale: Annotated[
        str, typer.Option(help="smoke (under a minute), quick (a workstation) or full (as in the paper).")
    ] = "smoke",
    real_data: Annotated[
        Path | None,
        typer.Option(
            help="quick, full: folder with qmnist-by-writer, tiny-imagenet-200 and weights; without it the built-in "
            "writers stand in for all data."
        ),
    ] = None,
) -> None:
    """Draw the paper's figures, with the paper's values in them; a second call resumes."""
    from experiments.figures import run_figures

    for picture in run_figures(names or (), scale, out, real_data):
        typer.echo(picture)
    typer.echo(out / "results.md")
