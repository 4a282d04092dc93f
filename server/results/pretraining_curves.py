"""pretraining.json of a run folder: how the model that the run began with was trained, epoch by epoch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from persephonee.multi_exit.checked_json import read_with_digest, write_with_digest
from persephonee.server.errors import ServerError

CURVES_NAME = "pretraining.json"

Curve = dict[str, Any]


def write_curves(run: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write the epochs of a model's metadata; those of a version that recorded otherwise are left out."""
    rows = [row for row in map(_checked, history) if row is not None]
    if rows:
        write_with_digest(run / CURVES_NAME, {"epochs": rows})


def read_curves(run: Path) -> list[Curve]:
    """Return `epoch`, `learning_rate`, `train_loss` and `validation_accuracy` (per exit) of each epoch; maybe none.

    Raises:
        ServerError: the file is damaged.
    """
    path = run / CURVES_NAME
    if not path.is_file():
        return []
    try:
        epochs = read_with_digest(path)["epochs"]
        rows = [_checked(row) for row in epochs] if isinstance(epochs, list) else [None]
    except (OSError, ValueError, KeyError) as error:
        raise ServerError(f"{path} is damaged ({error}): remove it, and the report has no such curves.") from None
    if None in rows or len({len(row["validation_accuracy"]) for row in rows if row}) > 1:
        raise ServerError(f"{path} is damaged: remove it, and the report has no such curves.")
    return [row for row in rows if row is not None]


def _checked(row: Any) -> Curve | None:
    """Return an epoch's numbers, or None where it is something else."""
    if not isinstance(row, Mapping):
        return None
    accuracies = row.get("validation_accuracy")
    numbers = [row.get(name) for name in ("epoch", "learning_rate", "train_loss")]
    if not isinstance(accuracies, Sequence) or isinstance(accuracies, str) or not accuracies:
        return None
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (*numbers, *accuracies)):
        return None
    names = ("epoch", "learning_rate", "train_loss")
    return {**dict(zip(names, numbers, strict=True)), "validation_accuracy": list(accuracies)}
