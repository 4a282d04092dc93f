"""What a federation's server needs before its SuperLink starts: certificates, a unit, a connection for `flwr`."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persephonee.fl_app.deployment.addresses import is_ip_address, join_address
from persephonee.fl_app.deployment.certificates import make_certificates
from persephonee.fl_app.deployment.private_folder import KEY_MODE, OPEN_MODE, check_free, write_private_folder
from persephonee.fl_app.deployment.programs import program
from persephonee.fl_app.deployment.systemd_units import superlink_unit
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.run_config import toml_value

CONNECTION = "devices"
"""The name under which `flwr` knows the SuperLink."""

SERVER_UNIT = "persephonee-server.service"
ROOT_CERTIFICATE = "ca.crt"
_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True, kw_only=True)
class ServerAddress:
    """Where a SuperLink is to be.

    Raises:
        AppError: no host, or a port that is none.
    """

    hosts: tuple[str, ...]
    """Names and addresses under which devices reach it; the first is the one that is shown to them."""

    listen: str = "0.0.0.0"
    """The address of this machine that it listens on."""

    port: int = 8443

    def __post_init__(self) -> None:
        if not self.hosts:
            raise AppError("No host was named; give --host NAME, the name or address by which devices reach this one.")
        if not 1 <= self.port <= 65535:
            raise AppError(f"--port {self.port} is no port; give 1 to 65535.")
        if self.listen != "localhost" and not is_ip_address(self.listen):
            raise AppError(f"--listen {self.listen} is no IP address; give one of this machine, or 0.0.0.0 for all.")


def init_server(folder: Path, place: ServerAddress, days: int) -> list[str]:
    """Make the server's folder, and return the steps that come next, one line each.

    Raises:
        AppError: the folder holds something, or a host is none.
        OSError: the folder cannot be written.
    """
    folder = folder.expanduser().absolute()
    check_free(folder)
    made = make_certificates((*place.hosts, *_LOOPBACK), days)
    words = superlink_command(folder, place)
    connection = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f"address = {toml_value(join_address(place.hosts[0], place.port))}\n"
        f"root-certificates = {toml_value(str(folder / ROOT_CERTIFICATE))}\n"
    )
    files = {
        "ca.key": (made.ca_key, KEY_MODE),
        ROOT_CERTIFICATE: (made.ca_certificate, OPEN_MODE),
        "server.key": (made.server_key, KEY_MODE),
        "server.crt": (made.server_certificate, OPEN_MODE),
        "flwr/config.toml": (connection.encode(), KEY_MODE),
        SERVER_UNIT: (superlink_unit(words, directory=folder).encode(), OPEN_MODE),
    }
    write_private_folder(folder, files, ("flower",))
    return _next_steps(folder, place)


def superlink_command(folder: Path, place: ServerAddress) -> Sequence[str]:
    """Return the command that starts the SuperLink of a server's folder."""
    return (
        program("flower-superlink"),
        *("--ssl-ca-certfile", str(folder / ROOT_CERTIFICATE)),
        *("--ssl-certfile", str(folder / "server.crt")),
        *("--ssl-keyfile", str(folder / "server.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--host", place.listen, "--port", str(place.port)),
        # registrations survive a restart
        *("--database", str(folder / "superlink.db")),
    )


def _next_steps(folder: Path, place: ServerAddress) -> list[str]:
    address = join_address(place.hosts[0], place.port)
    home = f"export FLWR_HOME={shlex.quote(str(folder / 'flwr'))}"
    return [
        "Start it:",
        f"  sudo cp {shlex.quote(str(folder / SERVER_UNIT))} /etc/systemd/system/",
        f"  sudo systemctl daemon-reload && sudo systemctl enable --now {SERVER_UNIT}",
        "On each device, which gets ca.crt from here:",
        f"  persephonee device enrol --client-id NAME --superlink {address} --root-certificate ca.crt ...",
        "Register each device with the public key that this makes; its name is then that key's alone:",
        f"  {home}",
        f"  flwr supernode register NAME.pub {CONNECTION} --name NAME",
        "Run a round from a checkout of this project (docs/devices.md):",
        f'  flwr run . {CONNECTION} --stream --run-config \'model="..." run-dir="..." clients=...\'',
        f"Move {folder / 'ca.key'} to a safe place: it is needed only for another server certificate.",
        f"Let port {place.port} be reached through a VPN only: whoever reaches it can start a run on the devices.",
    ]
