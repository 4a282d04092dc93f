"""The server's side: load the global model, run the rounds, keep the tables, draw the report.

A run that misses its quota of valid replies raises, so that Flower records it as failed; the run folder's status.json
says why in one sentence.
"""

import logging
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from data_partitions.opening import open_partitions
from data_partitions.user_splits import choose_users
from fl_app.code_fingerprint import code_fingerprint
from fl_app.global_model import as_global_model, obtain_model
from fl_app.model_fit import check_fit
from fl_app.run_status import FAILED, FINISHED, RunStatus, StatusFile
from fl_app.settings import PATH_KEYS, AppSettings
from fl_app.strategy import PersonalisationStrategy, check_quota
from multi_exit.network import MultiExitNetwork
from multi_exit.storage import ModelMetadata, load_network
from server.pretraining_progress import LogProgress
from server.report_page import draw_report
from server.run_folder import RunFolder

log = logging.getLogger("persephonee.server")

app = ServerApp()

# Where a run happens and how it is started, as opposed to what determines its numbers.
_NOT_RECORDED = PATH_KEYS | {"resume", "overwrite", "round-deadline", "node-wait"}
# A run may be continued for more rounds, and on another machine.
MAY_DIFFER = frozenset({"num-server-rounds", "versions", "machine"})


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
        overwrite=settings.places.overwrite,
        resume=settings.places.resume,
        may_differ=MAY_DIFFER,
    )
    file = StatusFile(folder.path)
    try:
        _run_rounds(grid, settings, network, metadata, folder, file)
        file.write(RunStatus(doing="drawing the report"))
        report = draw_report(folder.path)
    except ValueError as error:
        file.write(RunStatus(state=FAILED, doing=str(error)))
        raise
    except Exception as error:
        file.write(RunStatus(state=FAILED, doing=f"{type(error).__name__}: {error}"))
        raise
    file.write(RunStatus(state=FINISHED, doing=str(report)))
    return report


def config_of(settings: AppSettings, network: MultiExitNetwork) -> dict[str, Any]:
    """Return what config.json records: everything that determines the run."""
    return {
        **{key: value for key, value in settings.to_run_config().items() if key not in _NOT_RECORDED},
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


def _run_rounds(
    grid: Grid,
    settings: AppSettings,
    network: MultiExitNetwork,
    metadata: ModelMetadata,
    folder: RunFolder,
    file: StatusFile,
) -> None:
    status = RunStatus(rounds=settings.rounds.num_server_rounds, doing="waiting for clients")
    file.write(status)

    def progress(done: int, asked: int) -> None:
        file.write(replace(status, done=done, asked=asked), often=True)

    def users(count: int) -> Sequence[str]:
        # only a simulation's server opens data: it runs on the machine that owns it
        partitions = open_partitions(settings.data)
        check_fit(network, partitions)
        return choose_users(partitions.client_ids, count, settings.seed, exclude=metadata.trained_on)

    strategy = PersonalisationStrategy(
        grid, as_global_model(network), code_fingerprint(), settings.rounds, on_progress=progress
    )
    enrolment = strategy.enrol(users)
    for number in range(1, settings.rounds.num_server_rounds + 1):
        if number not in folder.completed_rounds:
            status = replace(status, round=number, doing="personalising", asked=len(enrolment.clients))
            file.write(status)
            result = strategy.run_round(number, enrolment)
            row = {"round": number, "replies": result.replies, "failures": result.failures, "seconds": result.seconds}
            folder.append_round(result.exits, result.clients, row)
            log.info("Round %d: %d replies, %d failures", number, result.replies, result.failures)
        # also of rounds that a resumed run finds: one that failed stays failed
        tables = folder.tables()
        row = next(row for row in tables.rounds.to_pylist() if row["round"] == number)
        check_quota(settings.rounds, row, [client["status"] for client in tables.clients_of(number)])


def _log_to_stdout() -> None:
    """Let our own log lines join Flower's, which go to the run's log; others', such as httpx's, would flood it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    for name in ("persephonee", "server"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not logger.handlers:
            logger.addHandler(handler)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
