"""`persephonee model push|pull|card`: a model's way to others."""

from pathlib import Path
from typing import Annotated

import typer

from persephonee.commands.errors import printable
from persephonee.commands.options import DEFAULT_SOURCES, Sources, source_names

model_app = typer.Typer(no_args_is_help=True, help="A model's way to and from a Hugging Face repository, and its card.")

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model.")]


@model_app.command()
def push(
    *,
    model: Model,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="hf://OWNER/NAME, or a folder, such as a clone.")],
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """Copy a model to a repository as it is: description, safetensors, graphs and card."""
    from persephonee.multi_exit.repository.exchange import push_model

    names = push_model(model, target, source_names(sources))
    typer.echo(printable(f"{target}: {len(names)} files of {model}; network.json names the users who trained it."))


@model_app.command()
def pull(
    *,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="hf://OWNER/NAME, or a folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the model; missing or empty.")],
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """Fetch a model from a repository; it is checked before it reaches its folder."""
    from persephonee.multi_exit.repository.exchange import pull_model

    names = pull_model(source, out, source_names(sources))
    typer.echo(printable(f"{out}: {len(names)} files from {source}, checked."))


@model_app.command()
def card(*, model: Model, sources: Sources = DEFAULT_SOURCES) -> None:
    """Write a model's card again; the licence that its owner chose stays."""
    from persephonee.multi_exit.repository.model_card import write_card
    from persephonee.multi_exit.storage import load_network

    typer.echo(write_card(load_network(model, source_names(sources))[0], model))
