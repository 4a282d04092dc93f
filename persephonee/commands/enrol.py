"""`persephonee device enrol`: a key pair, a node configuration and a systemd unit for a device of a federation."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import DEFAULT_SOURCES, Sources, data_settings, source_names

if TYPE_CHECKING:
    from persephonee.data_partitions.settings import DataSettings


@with_groups(data=data_settings)
def enrol(
    *,
    client_id: Annotated[str, typer.Option(help="This device's name, which is also its user's id in DATA.")],
    store: Annotated[Path, typer.Option(help="Folder of this device's exits, policy, state and models.")],
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    root_certificate: Annotated[Path, typer.Option(help="ca.crt from the server's folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the key, the settings and the unit; a new one.")],
    data: "DataSettings",
    share_exits: Annotated[
        bool, typer.Option("--share-exits", help="Let personal exits leave this device when a run asks for them.")
    ] = False,
    share_curve: Annotated[
        bool,
        typer.Option("--share-curve", help="Let this device's risk curve leave it, for policies chosen with others'."),
    ] = False,
    models: Annotated[
        str,
        typer.Option(help="Fingerprints of the models it answers for, with commas; else the first it is sent."),
    ] = "",
    port: Annotated[int, typer.Option(help="On loopback; two SuperNodes on one machine need two.")] = 9094,
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """Make what a SuperNode needs to join, and print the public key to register on the server."""
    from persephonee.fl_app.deployment.device_folder import (
        DEVICE_UNIT,
        KEY_NAME,
        DeviceMembership,
        enrol_device,
        supernode_command,
    )
    from persephonee.fl_app.deployment.node_config import NODE_CONFIG_NAME

    device = DeviceMembership(
        client_id=client_id,
        store=store,
        superlink=superlink,
        sources=source_names(sources),
        share_exits=share_exits,
        share_curve=share_curve,
        models=tuple(name.strip() for name in models.split(",") if name.strip()),
        port=port,
    )
    public = enrol_device(out, device, data, root_certificate)
    folder = out.expanduser().absolute()
    typer.echo(f"Register this public key ({folder / KEY_NAME}.pub) on the server with `flwr supernode register`, and")
    typer.echo(f"with --name {shlex.quote(client_id)}, so that nobody else can say this id:")
    typer.echo(f"  {public}")
    typer.echo(f"Check everything, then start it ({NODE_CONFIG_NAME} says what this device is and allows):")
    typer.echo(f"  persephonee device doctor {shlex.quote(str(folder))}")
    typer.echo(f"  sudo cp {shlex.quote(str(folder / DEVICE_UNIT))} /etc/systemd/system/")
    typer.echo(f"  sudo systemctl daemon-reload && sudo systemctl enable --now {DEVICE_UNIT}")
    typer.echo("or by hand, with this Python's environment activated:")
    flower_home = shlex.quote(str(folder / "flower"))
    typer.echo(f"  FLWR_HOME={flower_home} {shlex.join(supernode_command(folder, device))}")
