"""`persephonee figures`: the paper's figures and those beyond, our numbers beside theirs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from persephonee.commands.options import Seed


def figures(
    *,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAMES]",
            help="3a 3b 4 5 6a 6b 7 headline, and beyond the paper deployed users seeds shift heads guard width "
            "samples risk; all without.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for pictures, tables, models and measurements.")],
    scale: Annotated[
        str, typer.Option(help="smoke (under a minute), quick (a workstation) or full (as in the paper).")
    ] = "smoke",
    real_data: Annotated[
        Path | None,
        typer.Option(
            help="quick, full: folder with femnist, qmnist-by-writer, tiny-imagenet-200 and weights, or some of them; "
            "without it the built-in writers stand in for all data. docs/data.md makes them."
        ),
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this study: resnet50, mobilenet_v2, femnist, qmnist or writers; may be given several times."
        ),
    ] = None,
    users: Annotated[
        int | None,
        typer.Option(min=2, help="At most so many users of each study; a later call with more goes on."),
    ] = None,
    qmnist_model: Annotated[
        Path | None, typer.Option(help="A model for QMNIST that `pretrain` made; none trains one.")
    ] = None,
    writers_model: Annotated[
        Path | None, typer.Option(help="A model for the built-in writers that `pretrain` made; none trains one.")
    ] = None,
    seed: Seed = 0,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many users measured at the same time; one for each core without it, at smoke scale one."
        ),
    ] = None,
) -> None:
    """Draw the paper's figures, with the paper's values in them; a second call resumes."""
    from persephonee.experiments.figures import run_figures

    pictures = run_figures(
        names or (),
        scale,
        out,
        real_data,
        only=study or (),
        users=users,
        qmnist_model=qmnist_model,
        writers_model=writers_model,
        seed=seed,
        processes=processes or (1 if scale == "smoke" else os.cpu_count() or 1),
    )
    for picture in pictures:
        typer.echo(picture)
    typer.echo(out / "results.md")
