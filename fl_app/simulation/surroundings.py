"""What of a person's environment must not reach Flower and Ray: proxies on loopback, encodings, another cluster."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from persephonee.fl_app.settings.watched_run import LOG_VARIABLE

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OURS = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Flower's clients need workers of another environment than those that Ray would start for each core beforehand
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    # one client per core: each of them with one thread
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    # Flower prints what the encodings of some terminals cannot say; ours is a file
    "PYTHONUTF8": "1",
    "PYTHONIOENCODING": "utf-8",
}


def environment_of_flower(home: Path, ray: Path, ray_address: str = "", log: Path | None = None) -> Mapping[str, str]:
    """Return the environment of a SuperLink and of everything that it starts.

    Args:
        home: Flower's home, for this run alone.
        ray: folder for the files of a Ray that is started.
        ray_address: HOST:PORT of a Ray cluster that is there; empty starts one.
        log: of the run that is watched; None where nobody watches.
    """
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    own.update(_OURS)
    own.update(_direct_loopback(own))
    own["FLWR_HOME"] = str(home)
    own.pop(LOG_VARIABLE, None)
    own.update({LOG_VARIABLE: str(log)} if log else {})
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}"
    # Ray binds to all interfaces where clusters are enabled, and to loopback where they are not
    alone = {"RAY_TMPDIR": str(ray), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    own.update({"RAY_ADDRESS": ray_address} if ray_address else alone)
    if "PYTHONPATH" in own:
        # it may lead to a backbone of one's own, and these processes work in another folder
        own["PYTHONPATH"] = os.pathsep.join(str(Path(p).absolute()) for p in own["PYTHONPATH"].split(os.pathsep) if p)
    if importlib.util.find_spec("socksio") is None:
        # Flower's client would not even start, though it speaks to loopback alone
        own = {name: value for name, value in own.items() if not _is_socks_proxy(name, value)}
    return own


def _direct_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Except loopback from the proxies; programs read either spelling, some of them only the small one."""
    known = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if known.strip() == "*":
        return {}
    hosts = ",".join(dict.fromkeys([*(host.strip() for host in known.split(",") if host.strip()), *LOOPBACK]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _is_socks_proxy(name: str, value: str) -> bool:
    return name.lower() in ("all_proxy", "http_proxy", "https_proxy") and value.lower().startswith("socks")
