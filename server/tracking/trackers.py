"""TensorBoard and MLflow behind one interface; each is imported when it is opened, and nothing is sent anywhere.

PLACE/tensorboard/NAME    TensorBoard's events
PLACE/mlflow.db           MLflow's runs; PLACE/mlflow/ holds their artifacts

Whoever sets MLFLOW_TRACKING_URI has MLflow write there instead.
"""

import importlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["tensorboard", "mlflow"]

EXPERIMENT = "persephonee"
LONGEST_PARAMETER = 500
"""Characters that every version of MLflow takes."""


class Tracker(Protocol):
    """Told of a run; a number that is missing or infinite is left out."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """Keep what determines the run."""

    def numbers(self, values: Mapping[str, float | None], step: int) -> None:
        """Keep measurements by name, at an epoch or a round."""

    def artifact(self, path: Path) -> None:
        """Keep a file."""

    def close(self, has_failed: bool) -> None:
        """Finish the run."""


def check_installed(kind: Kind) -> None:
    """Import a tracker's package, so that a missing one is found before any work begins.

    Raises:
        ModuleNotFoundError: it is not installed; the command line says which extra brings it.
    """
    importlib.import_module(kind)
    # MLflow's local files are a database, TensorBoard's writer comes with PyTorch
    importlib.import_module("sqlalchemy" if kind == "mlflow" else "torch.utils.tensorboard")


@contextmanager
def opened_tracker(kind: Kind, place: Path, name: str) -> Iterator[Tracker]:
    """Open a tracker for one run, and finish it whatever happens.

    Args:
        kind: which.
        place: folder for local files.
        name: of the run.
    """
    tracker: Tracker = _TensorBoard(place / "tensorboard" / name) if kind == "tensorboard" else _MLflow(place, name)
    try:
        yield tracker
    except BaseException:
        tracker.close(has_failed=True)
        raise
    tracker.close(has_failed=False)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder))

    def settings(self, values: Mapping[str, Any]) -> None:
        rows = "\n".join(f"| {key} | {value} |" for key, value in values.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def numbers(self, values: Mapping[str, float | None], step: int) -> None:
        for name, value in _finite(values):
            self._writer.add_scalar(name, value, step)

    def artifact(self, path: Path) -> None:
        if path.suffix != ".png":
            self._writer.add_text("artifacts", str(path))
            return
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(path.stem, np.asarray(image.convert("RGB")), dataformats="HWC")

    def close(self, has_failed: bool) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, place: Path, name: str) -> None:
        # its usage statistics would leave this machine
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        place = place.absolute()
        elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
        place.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(elsewhere or f"sqlite:///{place / 'mlflow.db'}")
        found = self._client.get_experiment_by_name(EXPERIMENT)
        where = None if elsewhere else (place / "mlflow").as_uri()
        number = found.experiment_id if found else self._client.create_experiment(EXPERIMENT, where)
        self._run = self._client.create_run(number, run_name=name).info.run_id

    def settings(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        given = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in values.items()]
        self._client.log_batch(self._run, params=given)

    def numbers(self, values: Mapping[str, float | None], step: int) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(self._run, metrics=[Metric(name, value, 0, step) for name, value in _finite(values)])

    def artifact(self, path: Path) -> None:
        self._client.log_artifact(self._run, str(path))

    def close(self, has_failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if has_failed else "FINISHED")


def _finite(values: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    return ((name, float(value)) for name, value in values.items() if value is not None and math.isfinite(value))
