"""Everything that `persephonee device doctor` looks at, in the order in which it matters."""

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

from persephonee.fl_app.deployment.doctor_machine import check_machine
from persephonee.fl_app.deployment.findings import Finding, wrong
from persephonee.fl_app.deployment.node_config import NODE_CONFIG_NAME, read_node_config
from persephonee.fl_app.errors import AppError
from persephonee.multi_exit.checked_json import read_with_digest


def examine(folder: Path | None, node_configs: Sequence[Path]) -> list[Finding]:
    """Look at this machine, and at a device's folder and the node configurations of others where they are given.

    Raises:
        AppError: the folder is no device's, or a path holds no node configuration.
        OSError: something is missing.
    """
    from persephonee.fl_app.deployment.doctor_device import check_duplicates

    if folder is None:
        # on a server that only compares devices, its own memory and disk are of no interest
        return check_duplicates(node_configs) if node_configs else check_machine(Path.cwd())
    own = folder / NODE_CONFIG_NAME
    if not own.exists():
        raise AppError(f"{folder} is no device's folder: it has no {NODE_CONFIG_NAME}; name one that enrol made.")
    config = read_node_config(own)
    findings = check_machine(Path(str(config.get("store", folder))))
    if importlib.util.find_spec("flwr") and importlib.util.find_spec("cryptography"):
        findings += _check_folder(folder)
    return findings + (check_duplicates(node_configs, own) if node_configs else [])


def _check_folder(folder: Path) -> list[Finding]:
    from persephonee.fl_app.deployment.device_folder import CONNECTION_NAME, KEY_NAME, ROOT_CERTIFICATE
    from persephonee.fl_app.deployment.doctor_device import check_key, check_node_config
    from persephonee.fl_app.deployment.doctor_link import check_link

    findings = [check_key(folder / KEY_NAME), *check_node_config(read_node_config(folder / NODE_CONFIG_NAME))]
    try:
        superlink = str(read_with_digest(folder / CONNECTION_NAME)["superlink"])
    except (ValueError, KeyError):
        remedy = "enrol the device again, into a new folder"
        return [*findings, wrong("reachability", f"{CONNECTION_NAME} names no superlink", remedy)]
    return [*findings, *check_link(superlink, folder / ROOT_CERTIFICATE, time.time)]
