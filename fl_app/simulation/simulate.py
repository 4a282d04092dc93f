"""A whole simulation, from settings to report: `persephonee simulate`.

Everything that can be wrong with the input is checked before Flower starts. Whether the run succeeded is judged by
what the ServerApp wrote into the run folder: Flower reports a run as completed when every client failed.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import FrameType

from persephonee.fl_app.errors import AppError, RunFailedError
from persephonee.fl_app.server_side.global_model import obtain_model
from persephonee.fl_app.server_side.own_strategy import own_strategy
from persephonee.fl_app.server_side.run_record import MAY_DIFFER, config_of
from persephonee.fl_app.server_side.run_status import FAILED, FINISHED, STATUS_NAME, RunStatus, read_status
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.simulation.app_folder import write_app_folder
from persephonee.fl_app.simulation.checks import check_machine, check_network, check_run_without_model, check_users
from persephonee.fl_app.simulation.ray_cluster import check_cluster
from persephonee.fl_app.simulation.resuming import keep_settings, noted_scratch, stop_killed_run
from persephonee.fl_app.simulation.run_progress import shown_run
from persephonee.fl_app.simulation.scratch import scratch_folder
from persephonee.fl_app.simulation.superlink import SuperLink
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata, load_network
from persephonee.server.results.run_folder import RunFolder
from persephonee.server.training.pretraining_progress import shown_progress

LOG_NAME = "log.txt"
SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_BETWEEN_CHECKS = 3.0
ATTEMPTS = 2
"""Ray gives up when it does not start within 30 s, as on a machine that is busy with something else."""


def simulate(settings: AppSettings, ray_address: str = "") -> Path:
    """Run a simulation and return its run folder.

    Args:
        settings: all of the run; without a run folder one is made below runs/, without a model one is pretrained.
        ray_address: HOST:PORT of a Ray cluster whose machines see the model, the data and the folder that the run
            folder lies in under the same paths; without it, Ray is started on this machine.

    Raises:
        RunFailedError: the run ended without the replies that it needs; the sentence names the cause and the log.
        AppError, DataError, MultiExitError, ServerError: the settings, the data or the model do not fit.
    """
    if ray_address:
        check_cluster(ray_address)
    is_named = settings.paths.run_dir is not None
    settings = _located(settings)
    run_dir = settings.run_folder(0)
    with _terminated_like_interrupted():
        try:
            settings = _with_model(_with_device(settings, ray_address), run_dir)
            with (
                scratch_folder(run_dir.parent if ray_address else None) as scratch,
                SuperLink(scratch, run_dir / LOG_NAME, ray_address, is_watched=True) as superlink,
            ):
                # Flower starts while the model and the data are opened
                settings, network, metadata = _prepared(settings, run_dir)
                with noted_scratch(run_dir, scratch):
                    _run(settings, run_dir, scratch, superlink)
        except BaseException:
            if not is_named:
                # a folder of our own that nothing was written into
                with contextlib.suppress(OSError):
                    run_dir.rmdir()
            raise
        _draw(settings, run_dir, network, metadata)
    return run_dir


def _draw(settings: AppSettings, run_dir: Path, network: MultiExitNetwork, metadata: ModelMetadata) -> None:
    """Draw the report, with one user's images, which the ServerApp never has."""
    # imported once Flower has ended: a round does not wait for matplotlib
    from persephonee.fl_app.simulation.example_user import example_user_of
    from persephonee.server.report.report_page import draw_report

    draw_report(run_dir, example_user_of(settings, network, metadata, RunFolder.open(run_dir).tables()))


def _located(settings: AppSettings) -> AppSettings:
    if settings.paths.run_dir is None:
        if settings.paths.resume or settings.paths.overwrite:
            raise AppError("--resume and --overwrite concern a run folder; name it with --run-dir.")
        run_dir = _new_folder(Path("runs"), datetime.now().strftime("simulation-%Y%m%d-%H%M%S"))
        settings = replace(settings, paths=replace(settings.paths, run_dir=run_dir))
    return settings.with_absolute_paths()


def _with_device(settings: AppSettings, ray_address: str) -> AppSettings:
    """Say on which kind of device everything is computed, so that a resumed run stays on it.

    A Ray cluster may have GPUs where this machine has none, and then has to be asked for them.
    """
    compute = settings.compute
    if not (ray_address and compute.device == "cuda" and settings.paths.model is not None):
        kind = compute.torch_device().type
        compute = replace(compute, device="cuda" if kind == "cuda" else "cpu")
    return replace(settings, compute=compute)


def _new_folder(place: Path, name: str) -> Path:
    """Make a folder that no other run has, even one that starts in the same second, and return it."""
    folder, number = place / name, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = place / f"{name}-{number}"


def _with_model(settings: AppSettings, run_dir: Path) -> AppSettings:
    """Check what is cheap to check, and name the model that the ServerApp will find: made here if none was named."""
    paths = settings.paths
    check_machine(settings, run_dir)
    stop_killed_run(run_dir)
    if settings.sharing.has_own_strategy:
        own_strategy(settings.sharing.strategy, settings.sources)
    if paths.model is None:
        check_run_without_model(settings, run_dir)
    with shown_progress() as progress:
        model = obtain_model(settings, settings.model_folder(0), progress)
    return replace(settings, paths=replace(paths, model=model))


def _prepared(settings: AppSettings, run_dir: Path) -> tuple[AppSettings, MultiExitNetwork, ModelMetadata]:
    """Check everything else, and make the run folder that the ServerApp will find."""
    paths = settings.paths
    network, metadata = load_network(settings.model_folder(0), settings.sources)
    partitions = open_fitting(settings.data, network, metadata, settings.sources)
    users = check_users(settings, partitions, metadata.trained_on)
    settings = replace(settings, rounds=replace(settings.rounds, clients=len(users)))
    check_network(settings, network, run_dir)
    config = config_of(settings, network)
    RunFolder.create(run_dir, config, overwrite=paths.overwrite, resume=paths.resume, may_differ=MAY_DIFFER)
    keep_settings(settings, run_dir)
    (run_dir / STATUS_NAME).unlink(missing_ok=True)
    # from here on the folder exists, and the ServerApp goes on in it
    settings = replace(settings, paths=replace(settings.paths, resume=True, overwrite=False))
    return settings, network, metadata


def _run(settings: AppSettings, run_dir: Path, scratch: Path, superlink: SuperLink) -> None:
    app = write_app_folder(scratch / "app", settings.to_run_config())
    gpus = settings.compute.gpu_fraction if settings.compute.device == "cuda" else 0.0
    with shown_run() as show:
        for _ in range(ATTEMPTS):
            run_id = superlink.start_run(app, settings.rounds.clients, gpus)
            status = _followed(superlink, run_id, run_dir, show)
            if status.state == FINISHED and not status.failures:
                superlink.stop_at_once()
                return
            cause = superlink.read_log(run_id)
            server_spoke = (read_status(run_dir) or RunStatus()).has_ended
            if server_spoke or status.round:
                break
    if status.state != FINISHED:
        reason = status.doing.rstrip(".") + ("" if server_spoke or not cause else f" ({cause.rstrip('.')})")
        raise RunFailedError(f"{reason}; the log is {run_dir / LOG_NAME}.")


def _followed(superlink: SuperLink, run_id: str, run_dir: Path, show: Callable[[RunStatus], None]) -> RunStatus:
    """Wait until the run has ended, showing how far it is, and return its last status."""
    checked = time.monotonic()
    while True:
        status = read_status(run_dir) or RunStatus()
        show(status)
        if status.has_ended:
            return status
        if time.monotonic() - checked > SECONDS_BETWEEN_CHECKS:
            ending = "" if superlink.is_simulating else superlink.ending_of(run_id)
            last = read_status(run_dir) or status
            if ending and not last.has_ended:
                return replace(last, state=FAILED, doing=ending)
            checked = time.monotonic()
        time.sleep(SECONDS_BETWEEN_LOOKS)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that everything that was started is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # nohup lets a program outlive its terminal: that stays so
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
