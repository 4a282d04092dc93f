"""`persephonee server init`: certificates, SuperLink settings and a systemd unit for the server of a federation."""

from pathlib import Path
from typing import Annotated

import typer

server_group = typer.Typer(no_args_is_help=True, help="The server of a federation of devices.")


@server_group.callback()
def _group() -> None:
    # with a callback, `server` stays a group though it has one verb
    pass


@server_group.command("init")
def init(
    *,
    host: Annotated[
        list[str], typer.Option(help="Name or IP address by which devices reach this machine; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for keys, certificates, settings and the unit; a new one.")],
    port: Annotated[int, typer.Option(help="Of the SuperLink.")] = 8443,
    listen: Annotated[
        str, typer.Option(help="Address of this machine to listen on, such as that of its VPN; 0.0.0.0 is all of them.")
    ] = "0.0.0.0",
    days: Annotated[int, typer.Option(help="How long the certificates are valid.")] = 1825,
) -> None:
    """Make what a SuperLink with TLS and authenticated SuperNodes needs, and say what comes next."""
    from persephonee.fl_app.deployment.server_folder import ServerAddress, init_server

    for line in init_server(out, ServerAddress(hosts=tuple(host), listen=listen, port=port), days):
        typer.echo(line)
