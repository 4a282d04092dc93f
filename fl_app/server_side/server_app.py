"""The server's side: load the global model, run the rounds, keep the tables, draw the report.

A run that misses its quota of valid replies raises, so that Flower records it as failed; the run folder's status.json
says why in one sentence.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from persephonee.fl_app.server_side.global_model import obtain_model
from persephonee.fl_app.server_side.run_record import MAY_DIFFER, config_of
from persephonee.fl_app.server_side.run_rounds import Rounds
from persephonee.fl_app.server_side.run_status import FAILED, FINISHED, StatusFile
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.settings.watched_run import LINE, is_watched, log_handler
from persephonee.multi_exit.storage import SavedModel
from persephonee.server.results.pretraining_curves import write_curves
from persephonee.server.results.run_folder import REPORT_NAME, RunFolder
from persephonee.server.training.pretraining_progress import LogProgress

log = logging.getLogger("persephonee.server")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run configuration asks for."""
    _log_our_lines()
    settings = AppSettings.from_run_config(context.run_config).with_absolute_paths()
    model = obtain_model(settings, settings.model_folder(context.run_id), LogProgress())
    report = serve(grid, settings, model, settings.run_folder(context.run_id), watched=is_watched())
    log.info("The report is %s", report)


def draw_report(run: Path) -> Path:
    """Draw the report of a run, and return its path."""
    # matplotlib takes as long to import as a round of a few clients
    from persephonee.server.report.report_page import draw_report as draw

    return draw(run)


def serve(grid: Grid, settings: AppSettings, model: Path, run_dir: Path, *, watched: bool = False) -> Path:
    """Run all rounds over the nodes of `grid`, draw the report, and return its path.

    Args:
        grid: Flower's connection to the nodes.
        settings: of the run.
        model: folder of the global model.
        run_dir: where the run is recorded.
        watched: whoever started the run has built the network, and draws the report once Flower has been told to stop.

    Raises:
        AppError: the settings or the model do not fit the data, or too few clients sent a valid reply.
        ServerError: the run folder is another run's.
        MultiExitError: the model cannot be loaded.
        DataError: the data is missing or broken.
    """
    saved = SavedModel.read(model, settings.sources)
    if not watched:
        # what is wrong with it is said before anybody is asked anything
        _ = saved.network
    folder = RunFolder.create(
        run_dir,
        config_of(settings, saved),
        overwrite=settings.paths.overwrite,
        resume=settings.paths.resume,
        may_differ=MAY_DIFFER,
    )
    write_curves(folder.path, saved.metadata.history)
    file = StatusFile(folder.path)
    try:
        Rounds(grid, settings, saved, folder, file).run()
        failures = sum(row["failures"] for row in folder.tables().rounds.to_pylist())
        report = folder.path / REPORT_NAME
        if not watched:
            file.write(replace(file.last, doing="drawing the report"))
            report = draw_report(folder.path)
    except ValueError as error:
        file.write(replace(file.last, state=FAILED, doing=str(error)))
        raise
    except Exception as error:
        file.write(replace(file.last, state=FAILED, doing=f"{type(error).__name__}: {error}"))
        raise
    file.write(replace(file.last, state=FINISHED, doing=str(report), failures=failures))
    return report


def _log_our_lines() -> None:
    """Let our own log lines join the run's log; others', such as httpx's, would flood it."""
    logger = logging.getLogger("persephonee")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(log_handler() or _to_stdout())


def _to_stdout() -> logging.Handler:
    # Flower sends what is printed here to the SuperLink
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(LINE))
    return handler
