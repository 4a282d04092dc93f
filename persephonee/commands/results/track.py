"""The option `--track` of `pretrain` and `simulate`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from persephonee.server.training.pretraining_progress import PretrainProgress


class TrackerName(StrEnum):
    """A tracker that a run can be written to."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


Track = Annotated[
    TrackerName | None,
    typer.Option(
        help="Also write curves and results for this tracker, as local files beside the folder of the result."
    ),
]


def require_tracker(track: TrackerName | None) -> None:
    """Find a tracker that is not installed before work begins."""
    if track is not None:
        from persephonee.server.tracking.trackers import check_installed

        check_installed(track.value)


@contextmanager
def tracked_progress(
    track: TrackerName | None, out: Path, shown: "PretrainProgress", settings: "Mapping[str, Any]"
) -> "Iterator[PretrainProgress]":
    """Yield a progress that also tells a tracker of the settings and each epoch of the model in `out`."""
    if track is None:
        yield shown
        return
    from persephonee.server.tracking.tracked import TrackedProgress, name_of
    from persephonee.server.tracking.trackers import opened_tracker

    with opened_tracker(track.value, out.absolute().parent, name_of(out)) as tracker:
        tracker.settings(settings)
        yield TrackedProgress(shown, tracker)


def track_results(track: TrackerName | None, run: Path) -> None:
    """Write a run, finished or not, for a tracker."""
    if track is None:
        return
    from persephonee.server.results.run_folder import RunFolder
    from persephonee.server.tracking.tracked import name_of, track_run
    from persephonee.server.tracking.trackers import opened_tracker

    folder = RunFolder.open(run)
    with opened_tracker(track.value, folder.path.parent, name_of(run)) as tracker:
        track_run(folder, tracker)
    typer.echo(f"Tracked by {track.value}, in {folder.path.parent}.", err=True)
