"""Whether a device's folder is whole: key, node configuration, backbones, data; and whether its id is its own."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from persephonee.fl_app.deployment.findings import Finding, ok, wrong
from persephonee.fl_app.deployment.node_config import NODE_CONFIG_NAME, read_node_config
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.run_config import Value

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

BUILT_IN = {"torchvision": "torchvision", "timm": "timm"}
_ENROL = "enrol the device again, into a new folder"


def check_key(path: Path) -> Finding:
    """Judge the private key: there, readable by its owner only, and on a curve that Flower takes."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        mode = path.stat().st_mode & 0o777
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        return wrong(
            "key", f"{path}: {error.strerror}", "run this as the owner of the folder, or enrol the device again"
        )
    except (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm):
        return wrong("key", f"{path} is no private key in OpenSSH's format", _ENROL)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return wrong("key", f"{path} is not on an elliptic curve, which Flower wants", _ENROL)
    if not _belongs_to(key, path.with_name(f"{path.name}.pub")):
        return wrong("key", f"{path} and {path.name}.pub are no pair, one is damaged", _ENROL)
    if mode & 0o077:
        return wrong("key", f"others may read {path} (mode {mode:o})", f"chmod 600 {path}; if it got out, enrol again")
    return ok("key", f"ECDSA on {key.curve.name}, mode {mode:o}")


def _belongs_to(key: "ec.EllipticCurvePrivateKey", public: Path) -> bool:
    """Return whether a private key is whole, and the public key beside it, if any, is its own."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    derived = ec.derive_private_key(key.private_numbers().private_value, key.curve).public_key()
    try:
        beside = load_ssh_public_key(public.read_bytes()) if public.exists() else derived
    except (OSError, ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm):
        return False
    return derived == key.public_key() and derived == beside


def check_node_config(config: Mapping[str, Value]) -> list[Finding]:
    """Judge the node configuration as the ClientApp would read it, and the data that it names."""
    from persephonee.data_partitions.errors import DataError
    from persephonee.data_partitions.opening import open_partitions
    from persephonee.fl_app.client_side.client_node import ClientNode
    from persephonee.fl_app.settings.app_settings import AppSettings

    try:
        node = ClientNode.of(config, AppSettings(), run_id=0)
    except ValueError as error:
        return [wrong("node configuration", str(error).rstrip("."), f"change it in {NODE_CONFIG_NAME}")]
    shares = "may leave it" if node.sharing_allowed else "stay on it"
    findings = [
        ok("node configuration", f"client {node.client_id}, its exits {shares}"),
        *(check_backbones(node.sources) if node.runtime.runtime == "torch" else ()),
    ]
    try:
        partitions = open_partitions(node.data, allowed=node.sources)
    except (DataError, OSError) as error:
        return [*findings, wrong("data", str(error).rstrip("."), f"change it in {NODE_CONFIG_NAME}")]
    if node.client_id not in partitions.client_ids:
        some = ", ".join(partitions.client_ids[:3])
        remedy = f"client-id is the user's id in the data, such as {some}: change it in {NODE_CONFIG_NAME}, or the data"
        return [*findings, wrong("data", f"{partitions.name} has no user {node.client_id!r}", remedy)]
    count = partitions.counts[partitions.client_ids.index(node.client_id)]
    return [*findings, ok("data", f"{count} samples of {node.client_id} in {partitions.name}")]


def check_backbones(sources: Iterable[str]) -> list[Finding]:
    """Judge whether the allowed sources of backbones are installed; torchvision is judged with torch."""
    sources = tuple(sources)
    missing = [name for name in sources if not _is_there(BUILT_IN.get(name, name))]
    if not missing:
        return [ok("backbones", f"from {', '.join(sources)}")]
    text = f"from {', '.join(sources)}; not installed: {', '.join(missing)}"
    if set(missing) <= {"timm"}:
        remedy = f"fine without timm's networks; or pip install timm, or leave timm out in {NODE_CONFIG_NAME}"
        return [ok("backbones", text) if len(sources) > 1 else wrong("backbones", text, remedy)]
    remedy = (
        f"install {', '.join(missing)} where the SuperNode's Python finds it, or leave it out in {NODE_CONFIG_NAME}"
    )
    return [wrong("backbones", text, remedy)]


def check_duplicates(configs: Iterable[Path], own: Path | None = None) -> list[Finding]:
    """Look for client ids and stores that more than one node configuration names.

    Args:
        configs: TOML files, or folders with them, such as collected device folders.
        own: the configuration of this device, of which a copy may be among them.

    Raises:
        AppError: a path holds no node configuration.
        OSError: it is missing.
    """
    read = {path: read_node_config(path) for path in sorted({path.resolve() for path in _files(configs)})}
    if own is not None and read_node_config(own) not in read.values():
        # one copy of this device's configuration among those collected is no second device
        read[own.resolve()] = read_node_config(own)
    holders: dict[str, list[Path]] = {}
    for path, config in read.items():
        holders.setdefault(str(config.get("client-id", "")), []).append(path)
    twins = {name: paths for name, paths in holders.items() if len(paths) > 1}
    if not twins:
        return [ok("client ids", f"{len(read)} node configurations, no id twice")]
    return [
        wrong(
            "client ids",
            f"{name!r} is in {', '.join(map(str, paths))}",
            "enrol all but one of them again under other names: a run leaves out clients whose id two nodes have",
        )
        for name, paths in sorted(twins.items())
    ]


def _files(configs: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in configs:
        files = sorted(path.rglob("*.toml")) if path.is_dir() else [path]
        if not files:
            raise AppError(f"{path} holds no node configuration (*.toml); name a folder with those of the devices.")
        found += files
    return found


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
