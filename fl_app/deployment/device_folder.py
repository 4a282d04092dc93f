"""A device's membership of a federation: its key pair, its node configuration, its unit, and whom it trusts."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.user_ids import id_complaint, shown
from persephonee.fl_app.deployment.addresses import split_address
from persephonee.fl_app.deployment.certificates import is_root
from persephonee.fl_app.deployment.node_config import NODE_CONFIG_NAME, data_keys, to_toml
from persephonee.fl_app.deployment.private_folder import (
    FOLDER_MODE,
    KEY_MODE,
    OPEN_MODE,
    check_free,
    write_private_folder,
)
from persephonee.fl_app.deployment.programs import program
from persephonee.fl_app.deployment.systemd_units import supernode_unit
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.run_config import Value
from persephonee.multi_exit.checked_json import with_digest

KEY_NAME = "device.key"
ROOT_CERTIFICATE = "ca.crt"
CONNECTION_NAME = "connection.json"
_FINGERPRINT = re.compile("[0-9a-f]{64}")
DEVICE_UNIT = "persephonee-device.service"


@dataclass(frozen=True, kw_only=True)
class DeviceMembership:
    """What an owner says of a device.

    Raises:
        AppError: an id is missing, or an address or a port is none.
    """

    client_id: str
    """Unique in the federation; stays the same over restarts and new enrolments."""
    store: Path
    """Folder of its exits, policy, state and models."""
    superlink: str
    """host:port."""
    sources: tuple[str, ...]
    """Where it may build backbones from."""
    share_exits: bool = False
    share_curve: bool = False
    """Whether its risk curve may leave it."""
    models: tuple[str, ...] = ()
    """Fingerprints of the models that it answers for; empty for the first that it is sent."""
    port: int = 9094
    """On loopback, for the SuperNode's own parts; two SuperNodes on one machine need two."""

    def __post_init__(self) -> None:
        complaint = id_complaint(self.client_id)
        if complaint:
            raise AppError(
                f"--client-id {shown(self.client_id)} is no name, since {complaint}; give one that no other device has."
            )
        if not 1 <= self.port <= 65535:
            raise AppError(f"--port {self.port} is no port; give 1 to 65535.")
        if not self.sources:
            raise AppError("--sources is empty; name where backbones may come from, such as torchvision.")
        odd = next((name for name in self.models if not _FINGERPRINT.fullmatch(name)), None)
        if odd is not None:
            raise AppError(
                f"--models {shown(odd)} is no fingerprint; give the one in a model's network.json, of 64 digits."
            )
        split_address(self.superlink)

    def node_config(self, data: DataSettings) -> dict[str, Value]:
        """Return the node configuration, which fl_app/client_side/client_node.py reads."""
        return {
            "client-id": self.client_id,
            "store": str(self.store.expanduser().absolute()),
            "backbones": ",".join(self.sources),
            "share-exits": self.share_exits,
            "share-curve": self.share_curve,
            **({"models": ",".join(self.models)} if self.models else {}),
            **data_keys(data),
        }


def enrol_device(folder: Path, device: DeviceMembership, data: DataSettings, root_certificate: Path) -> str:
    """Make the device's folder and its store, and return its public key in one line.

    Raises:
        AppError: the folder holds something, or the root certificate is none.
        OSError: a folder cannot be written, or the certificate not read.
    """
    folder = folder.expanduser().absolute()
    check_free(folder)
    certificate = root_certificate.read_bytes()
    _check_root(root_certificate, certificate)
    store = device.store.expanduser().absolute()
    store.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    private, public = _key_pair(device.client_id)
    words = supernode_command(folder, device)
    unit = supernode_unit(words, directory=folder, writable=(store, folder / "flower"))
    connection = {"superlink": device.superlink}
    files = {
        KEY_NAME: (private, KEY_MODE),
        f"{KEY_NAME}.pub": (public.encode(), OPEN_MODE),
        ROOT_CERTIFICATE: (certificate, OPEN_MODE),
        NODE_CONFIG_NAME: (to_toml(device.node_config(data)).encode(), KEY_MODE),
        CONNECTION_NAME: (json.dumps(with_digest(connection)).encode(), OPEN_MODE),
        DEVICE_UNIT: (unit.encode(), OPEN_MODE),
    }
    write_private_folder(folder, files, ("flower",))
    return public.strip()


def supernode_command(folder: Path, device: DeviceMembership) -> tuple[str, ...]:
    """Return the command that starts the SuperNode of a device's folder."""
    return (
        program("flower-supernode"),
        *("--root-certificates", str(folder / ROOT_CERTIFICATE)),
        *("--superlink", device.superlink),
        *("--auth-supernode-private-key", str(folder / KEY_NAME)),
        *("--host", "127.0.0.1", "--port", str(device.port)),
        *("--node-config", str(folder / NODE_CONFIG_NAME)),
    )


def _check_root(path: Path, content: bytes) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(content)
        is_authority = is_root(certificate)
    except ValueError:
        is_authority = False
    if not is_authority:
        raise AppError(f"{path} is no certificate of an authority; copy ca.crt from the server's folder.")


def _key_pair(comment: str) -> tuple[bytes, str]:
    """Return a private and a public key on P-384 in the format of OpenSSH."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    # a comment may hold spaces, and nobody needs it to be exact
    return private, f"{public.decode()} {'-'.join(comment.split())}\n"
