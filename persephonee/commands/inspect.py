"""`persephonee inspect`: the table of exits of a model, or of the network that a CNN would become."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.option_groups import OptionGroup, with_groups
from persephonee.commands.options import DEFAULT_SOURCES, GLOBAL_MODEL, AsJson, Seed, Sources, own_modules, source_names

if TYPE_CHECKING:
    from persephonee.multi_exit.network import MultiExitNetwork
    from persephonee.server.training.global_model_settings import GlobalModelSettings

SMALL_INPUT_PX = 48


@with_groups(wanted=OptionGroup(f"{GLOBAL_MODEL}:GlobalModelSettings", only=("num_exits", "head", "stem")))
def inspect(
    *,
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="Folder of a model; or else give --backbone.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="A torchvision CNN, timm/NAME, or package.module:function.")
    ] = None,
    wanted: "GlobalModelSettings",
    input_size: Annotated[int, typer.Option(help="Side of the square images, in px.")] = 28,
    num_classes: Annotated[int, typer.Option(help="Classes that the network tells apart.")] = 62,
    in_channels: Annotated[
        int | None, typer.Option(help="1 (grey) or 3 (colour); by default 3 above 48 px, else 1.")
    ] = None,
    as_json: AsJson = False,
    sources: Sources = DEFAULT_SOURCES,
    seed: Seed = 0,
) -> None:
    """Print where the exits sit and what they cost, in multiply-adds and parameters."""
    from persephonee.multi_exit.backbones import source_of
    from persephonee.multi_exit.building import build_network
    from persephonee.multi_exit.storage import load_network

    if (model is None) == (backbone is None):
        raise typer.BadParameter("expected either the folder of a model or --backbone NAME.")
    if model is not None:
        network = load_network(model, source_names(sources))[0]
    elif backbone is not None:
        network = build_network(
            backbone,
            num_exits=wanted.num_exits,
            num_classes=num_classes,
            in_channels=in_channels or (3 if input_size > SMALL_INPUT_PX else 1),
            input_size=input_size,
            head=wanted.head,
            stem=wanted.stem,
            allowed=source_names(sources, *own_modules(wanted.head), source_of(backbone)),
            seed=seed,
        )
    _show(network, as_json)


def _show(network: "MultiExitNetwork", as_json: bool) -> None:
    from rich.console import Console

    from persephonee.commands.models.exits_table import exits_json, exits_table

    if as_json:
        typer.echo(json.dumps(exits_json(network), indent=2))
    else:
        Console().print(exits_table(network))
