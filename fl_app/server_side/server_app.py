"""The server's side: load the global model, run the rounds, keep the tables, draw the report.

A run that misses its quota of valid replies raises, so that Flower records it as failed; the run folder's status.json
says why in one sentence.
"""

import logging
import platform
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from persephonee.fl_app.server_side.global_model import obtain_model
from persephonee.fl_app.server_side.run_rounds import Rounds
from persephonee.fl_app.server_side.run_status import FAILED, FINISHED, StatusFile
from persephonee.fl_app.settings.app_settings import PATH_KEYS, AppSettings
from persephonee.fl_app.wire.code_fingerprint import code_fingerprint
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network
from persephonee.server.report.report_page import draw_report
from persephonee.server.results.run_folder import CHANGED, RunFolder
from persephonee.server.results.run_folder import MAY_DIFFER as ANY_RUN_MAY_DIFFER
from persephonee.server.training.pretraining_progress import LogProgress

log = logging.getLogger("persephonee.server")

app = ServerApp()

# Where a run happens and how it is started, as opposed to what determines its numbers.
_NOT_RECORDED = PATH_KEYS | {"resume", "overwrite", "round-deadline", "node-wait"}
# A run may be continued for more rounds, too.
MAY_DIFFER = ANY_RUN_MAY_DIFFER | {"rounds", CHANGED}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run configuration asks for."""
    _log_to_stdout()
    settings = AppSettings.from_run_config(context.run_config).with_absolute_paths()
    model = obtain_model(settings, settings.model_folder(context.run_id), LogProgress())
    report = serve(grid, settings, model, settings.run_folder(context.run_id))
    log.info("The report is %s", report)


def serve(grid: Grid, settings: AppSettings, model: Path, run_dir: Path) -> Path:
    """Run all rounds over the nodes of `grid`, and return the path of the report.

    Raises:
        AppError: the settings or the model do not fit the data, or too few clients sent a valid reply.
        ServerError: the run folder is another run's.
        MultiExitError: the model cannot be loaded.
        DataError: the data is missing or broken.
    """
    network, metadata = load_network(model, settings.sources)
    folder = RunFolder.create(
        run_dir,
        config_of(settings, network),
        overwrite=settings.paths.overwrite,
        resume=settings.paths.resume,
        may_differ=MAY_DIFFER,
    )
    file = StatusFile(folder.path)
    try:
        Rounds(grid, settings, network, metadata, folder, file, model).run()
        file.write(replace(file.last, doing="drawing the report"))
        report = draw_report(folder.path)
    except ValueError as error:
        file.write(replace(file.last, state=FAILED, doing=str(error)))
        raise
    except Exception as error:
        file.write(replace(file.last, state=FAILED, doing=f"{type(error).__name__}: {error}"))
        raise
    file.write(replace(file.last, state=FINISHED, doing=str(report)))
    return report


def config_of(settings: AppSettings, network: MultiExitNetwork) -> dict[str, Any]:
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


def _log_to_stdout() -> None:
    """Let our own log lines join Flower's, which go to the run's log; others', such as httpx's, would flood it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logger = logging.getLogger("persephonee")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(handler)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
