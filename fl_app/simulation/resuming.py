"""What `persephonee simulate --resume RUN` finds: the settings that the run began with, and what it left running."""

import contextlib
import hmac
import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import psutil

from persephonee.data_partitions.user_ids import shown
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.server_side.checkpoint import FOLDER
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.settings.run_config import Value, with_present_names
from persephonee.fl_app.simulation.scratch import is_alive, mark_of, remove_scratch
from persephonee.multi_exit.atomic_files import make_private_folder, write_bytes_atomically
from persephonee.multi_exit.checked_json import read_with_digest, write_with_digest

NOTE_NAME = "works-in.json"
# What a folder says is data: code is imported from where the caller allows it, and written to below the run folder.
_NEVER_KEPT = ("sources", "client-store", "model-store")
_ELSEWHERE = ("model", "data-path", "weights", "hub-name")
"""What a run reads from outside its folder, and whoever made the folder could choose: see `kept_config`."""
_SEAL = "seal"


def keep_settings(settings: AppSettings, run_dir: Path) -> None:
    """Keep all settings, paths included, so that a resumed run need not be told them again."""
    make_private_folder(run_dir / FOLDER)
    values = settings.to_run_config()
    key = _own_key()
    sealed = values if key is None else {**values, _SEAL: _seal(values, key)}
    write_with_digest(run_dir / FOLDER / "settings.json", sealed, private=True)


def kept_config(run_dir: Path, given: Collection[str] = ()) -> dict[str, Value] | None:
    """Return the run configuration that a run began with, under the present names; None where it kept none.

    What may be imported, and where else than in the run folder clients store, is for the caller to say each time. What
    is read from outside the folder is taken from it only where this user's seal says that it is from here.

    Args:
        run_dir: the run's folder.
        given: the keys that the caller says anew.

    Raises:
        AppError: what the run kept is damaged, or names what lies elsewhere and bears no seal of this user.
    """
    path = run_dir / FOLDER / "settings.json"
    if not path.is_file():
        return None
    try:
        kept: dict[str, Value] = read_with_digest(path)
        seal = str(kept.pop(_SEAL, ""))
    except (OSError, ValueError) as error:
        raise AppError(f"{path} is damaged ({error}): delete it, and give all options again.") from None
    present = with_present_names(kept)
    key = _own_key()
    if key is None or not hmac.compare_digest(seal.encode("utf-8", "replace"), _seal(kept, key).encode()):
        for name in (name for name in _ELSEWHERE if name not in given):
            value = str(present.get(name, ""))
            if value and (name == "hub-name" or not _is_below(run_dir, value)):
                raise AppError(
                    f"{run_dir} was not begun by you on this machine, and would read {name}={shown(value)} outside its "
                    f"folder: add --{name} with this or your own value if that is what you want."
                )
    return {key: value for key, value in present.items() if key not in _NEVER_KEPT}


def _is_below(folder: Path, named: str) -> bool:
    try:
        return (folder / named).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        # no path at all
        return False


def _own_key() -> bytes | None:
    """Return the key of this user's seals, made where there is none; None where there is no place for it."""
    place = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "persephonee" / "seal.key"
    try:
        if not place.exists():
            make_private_folder(place.parent)
            write_bytes_atomically(place, secrets.token_bytes(32), private=True)
        return place.read_bytes() or None
    except OSError:
        return None


def _seal(values: Mapping[str, Value], key: bytes) -> str:
    return hmac.new(key, json.dumps(dict(values), sort_keys=True).encode(), "sha256").hexdigest()


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
