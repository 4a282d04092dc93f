"""What config.json records of a run, and what of it may differ where a run is continued."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from persephonee.fl_app.settings.app_settings import PATH_KEYS, AppSettings
from persephonee.fl_app.wire.code_fingerprint import code_fingerprint
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import SavedModel
from persephonee.server.results.run_folder import CHANGED
from persephonee.server.results.run_folder import MAY_DIFFER as ANY_RUN_MAY_DIFFER

# Where a run happens and how it is started, as opposed to what determines its numbers.
_NOT_RECORDED = PATH_KEYS | {"resume", "overwrite", "round-deadline", "node-wait"}
# A run may be continued for more rounds, too.
MAY_DIFFER = ANY_RUN_MAY_DIFFER | {"rounds", CHANGED}


def config_of(settings: AppSettings, network: MultiExitNetwork | SavedModel) -> dict[str, Any]:
    """Return what config.json records: everything that determines the run."""
    defaults, recorded = AppSettings().to_run_config(), settings.to_run_config()
    return {
        **{key: value for key, value in recorded.items() if key not in _NOT_RECORDED},
        CHANGED: sorted(key for key in recorded if key not in _NOT_RECORDED and recorded[key] != defaults[key]),
        "data-path": str(settings.data.data_path or ""),
        "model": network.fingerprint,
        "network": network.spec.to_json(),
        "code": code_fingerprint(),
        "versions": {name: _version(name) for name in ("persephonee", "torch", "flwr", "ray", "numpy")},
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch-threads": torch.get_num_threads(),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
