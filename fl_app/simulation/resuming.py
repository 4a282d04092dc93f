"""What `persephonee simulate --resume RUN` finds: the settings that the run began with, and what it left running."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from persephonee.fl_app.errors import AppError
from persephonee.fl_app.server_side.checkpoint import FOLDER
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.settings.run_config import Value, with_present_names
from persephonee.fl_app.simulation.scratch import is_alive, mark_of, remove_scratch
from persephonee.multi_exit.atomic_files import make_private_folder
from persephonee.multi_exit.checked_json import read_with_digest, write_with_digest

NOTE_NAME = "works-in.json"
# What a folder says is data: code is imported from where the caller allows it, and written to below the run folder.
_NEVER_KEPT = ("sources", "client-store", "model-store")


def keep_settings(settings: AppSettings, run_dir: Path) -> None:
    """Keep all settings, paths included, so that a resumed run need not be told them again."""
    make_private_folder(run_dir / FOLDER)
    write_with_digest(run_dir / FOLDER / "settings.json", settings.to_run_config(), private=True)


def kept_config(run_dir: Path) -> dict[str, Value] | None:
    """Return the run configuration that a run began with, under the present names; None where it kept none.

    What may be imported, and where else than in the run folder clients store, is for the caller to say each time.

    Raises:
        AppError: what the run kept is damaged.
    """
    path = run_dir / FOLDER / "settings.json"
    if not path.is_file():
        return None
    try:
        kept: dict[str, Value] = read_with_digest(path)
    except (OSError, ValueError) as error:
        raise AppError(f"{path} is damaged ({error}): delete it, and give all options again.") from None
    present = with_present_names(kept)
    return {key: value for key, value in present.items() if key not in _NEVER_KEPT}


@contextlib.contextmanager
def noted_scratch(run_dir: Path, scratch: Path) -> Iterator[None]:
    """Note where a run works and who runs it, so that whoever resumes it after a kill can stop what goes on there.

    A run that ended with an error leaves no note: its process may live on, as a notebook does, and nothing goes on.
    """
    note = run_dir / FOLDER / NOTE_NAME
    own = psutil.Process()
    write_with_digest(note, {"scratch": str(scratch), "pid": own.pid, "since": own.create_time()})
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
    try:
        found = read_with_digest(note)
        scratch, pid = Path(found["scratch"]), int(found["pid"])
        goes_on = pid != os.getpid() and is_alive({"pid": pid, "since": found["since"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AppError(f"{note} is damaged ({error!r}): see that the run has ended, and delete it.") from None
    if goes_on:
        raise AppError(f"The run in {run_dir} is going on, in process {pid}: wait for its end, or stop it.")
    if scratch.exists():
        if not mark_of(scratch):
            raise AppError(f"{note} names {scratch}, which no run of yours made: delete the note, and go on.")
        remove_scratch(scratch)
    note.unlink()
