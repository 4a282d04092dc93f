"""What a tracker is told: each epoch of a pretraining as it ends, and a run's rounds, exits and report."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persephonee.server.results.pretraining_curves import read_curves
from persephonee.server.tracking.trackers import Tracker
from persephonee.server.training.pretraining_checkpoint import EpochRecord
from persephonee.server.training.pretraining_progress import PretrainProgress

if TYPE_CHECKING:
    # a pretraining is tracked where parquet is not installed
    from persephonee.server.results.run_folder import RunFolder

ARTIFACTS = ("report.html", "summary.json", "config.json")
ROUND_NUMBERS = (
    "accuracy_original",
    "accuracy_before",
    "accuracy_after",
    "mean_macs",
    "bytes_up",
    "bytes_down",
    "seconds",
)


class TrackedProgress(PretrainProgress):
    """Tells a tracker of each epoch, and another progress of everything."""

    def __init__(self, shown: PretrainProgress, tracker: Tracker) -> None:
        self._shown, self._tracker = shown, tracker

    def users_loaded(self, done: int, total: int) -> None:
        """Pass it on."""
        self._shown.users_loaded(done, total)

    def epoch_started(self, epoch: int, epochs: int, batches: int) -> None:
        """Pass it on."""
        self._shown.epoch_started(epoch, epochs, batches)

    def batch_done(self, loss: float) -> None:
        """Pass it on."""
        self._shown.batch_done(loss)

    def epoch_done(self, record: EpochRecord) -> None:
        """Track the epoch."""
        self._tracker.numbers(
            epoch_numbers(record.train_loss, record.learning_rate, record.validation_accuracy), record.epoch
        )
        self._shown.epoch_done(record)


def epoch_numbers(loss: float, rate: float, accuracies: Iterable[float]) -> dict[str, float]:
    """Return an epoch's numbers by the names that trackers show."""
    of_exits = {f"pretraining/accuracy_exit_{exit}": value for exit, value in enumerate(accuracies)}
    return {"pretraining/loss": loss, "pretraining/learning_rate": rate, **of_exits}


def track_run(folder: "RunFolder", tracker: Tracker) -> None:
    """Tell a tracker everything that a run folder holds: settings, curves, rounds, exits and the report.

    Raises:
        ServerError: a table is damaged.
    """
    tracker.settings(dict(_flat(folder.config)))
    for row in read_curves(folder.path):
        tracker.numbers(
            epoch_numbers(row["train_loss"], row["learning_rate"], row["validation_accuracy"]), row["epoch"]
        )
    tables = folder.tables()
    for row in tables.rounds.to_pylist():
        number = row["round"]
        tracker.numbers({f"rounds/{name}": row[name] for name in ROUND_NUMBERS}, number)
        tracker.numbers(_exit_numbers(tables.exits_of(number)), number)
    figures = sorted((folder.path / "figures").glob("*.png"))
    for path in (*(folder.path / name for name in ARTIFACTS), *figures):
        if path.is_file():
            tracker.artifact(path)


def _exit_numbers(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for measure in ("accuracy", "exit_rate"):
            if row[measure] is not None:
                found.setdefault(f"exits/{measure}_{row['stage']}_exit_{row['exit']}", []).append(row[measure])
    return {name: float(np.mean(values)) for name, values in found.items()}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def name_of(path: Path) -> str:
    """Return what trackers call the run or the model in a folder."""
    return path.absolute().name
