"""`persephonee new`: the folder of a Flower app for a CNN and data of one's own."""

from pathlib import Path
from typing import Annotated

import typer


def new(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the app is written; its name is the app's.")],
) -> None:
    """Write a Flower app that imports persephonee, with a CNN and users as two short files of your own."""
    from persephonee.fl_app.template.new_app import write_new_app

    made, package = write_new_app(folder)
    typer.echo(f"{made}: edit {package}/cnn.py and {package}/users.py; README.md says how to run it.")
