"""What `persephonee simulate --resume RUN` finds: the settings that the run began with, and what it left running."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from persephonee.fl_app.errors import AppError
from persephonee.fl_app.server_side.checkpoint import FOLDER
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.settings.run_config import Value, with_present_names
from persephonee.fl_app.simulation.superlink import stop_leftovers
from persephonee.multi_exit.atomic_files import write_json_atomically

NOTE_NAME = "works-in.json"


def keep_settings(settings: AppSettings, run_dir: Path) -> None:
    """Keep all settings, paths included, so that a resumed run need not be told them again."""
    write_json_atomically(run_dir / FOLDER / "settings.json", settings.to_run_config())


def kept_config(run_dir: Path) -> dict[str, Value] | None:
    """Return the run configuration that a run began with, under the present names; None where it kept none.

    Raises:
        AppError: what the run kept is damaged.
    """
    path = run_dir / FOLDER / "settings.json"
    if not path.is_file():
        return None
    try:
        kept: dict[str, Value] = json.loads(path.read_text())
    except ValueError as error:
        raise AppError(f"{path} is damaged ({error}): delete it, and give all options again.") from None
    return with_present_names(kept)


@contextlib.contextmanager
def noted_scratch(run_dir: Path, scratch: Path) -> Iterator[None]:
    """Note where a run works and who runs it, so that whoever resumes it after a kill can stop what goes on there.

    A run that ended with an error leaves no note: its process may live on, as a notebook does, and nothing goes on.
    """
    note = run_dir / FOLDER / NOTE_NAME
    own = psutil.Process()
    write_json_atomically(note, {"scratch": str(scratch), "pid": own.pid, "since": own.create_time()})
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def stop_killed_run(run_dir: Path) -> None:
    """Stop what a killed run left behind: its SuperLink goes on without it, and would write the same tables.

    Raises:
        AppError: the run was not killed, and is going on.
    """
    note = run_dir / FOLDER / NOTE_NAME
    if not note.is_file():
        return
    found = json.loads(note.read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        if psutil.Process(found["pid"]).create_time() == found["since"] and found["pid"] != os.getpid():
            raise AppError(
                f"The run in {run_dir} is going on, in process {found['pid']}: wait for its end, or stop it."
            )
    scratch = Path(found["scratch"])
    stop_leftovers(scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    note.unlink()
