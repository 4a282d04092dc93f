import math

import pytest

from persephonee.server.results.pretraining_curves import write_curves
from persephonee.server.tracking.tracked import TrackedProgress, track_run
from persephonee.server.tracking.trackers import opened_tracker
from persephonee.server.training.pretraining_checkpoint import EpochRecord
from persephonee.server.training.pretraining_progress import PretrainProgress
from tests.server.made_runs import write_run

EPOCHS = [
    {"epoch": number, "learning_rate": 0.1 / number, "train_loss": 3.0 / number, "validation_accuracy": [0.5, 0.75]}
    for number in (1, 2)
]


class Notes:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, int], float] = {}
        self.given, self.files = {}, []

    def settings(self, values):
        self.given.update(values)

    def numbers(self, values, step):
        self.said.update({(name, step): value for name, value in values.items()})

    def artifact(self, path):
        self.files.append(path.name)


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "runs" / "first", {"a": 0.5, "b": 0.75}, epochs=7)
    write_curves(folder.path, EPOCHS)
    (folder.path / "report.html").write_text("<p>")
    return folder


def test_a_tracker_is_told_the_settings_the_curves_each_round_each_exit_and_the_report(run):
    notes = Notes()
    track_run(run, notes)
    assert notes.given["epochs"] == 7
    assert notes.said["pretraining/loss", 2] == 1.5
    assert notes.said["pretraining/accuracy_exit_1", 1] == 0.75
    assert notes.said["rounds/accuracy_after", 1] == 0.625
    assert notes.said["exits/accuracy_after_exit_0", 1] == 0.625
    assert notes.said["exits/accuracy_before_exit_1", 1] == pytest.approx(0.6)
    assert notes.files == ["report.html", "config.json"]


def test_an_epoch_is_tracked_as_it_ends_and_still_shown():
    class Shown(PretrainProgress):
        epochs = 0

        def epoch_done(self, record):
            self.epochs += 1

    notes, shown = Notes(), Shown()
    record = EpochRecord(epoch=3, learning_rate=0.1, train_loss=2.0, validation_accuracy=(0.25, 0.5))
    TrackedProgress(shown, notes).epoch_done(record)
    assert notes.said["pretraining/accuracy_exit_0", 3] == 0.25
    assert shown.epochs == 1


def test_tensorboard_reads_back_what_was_written(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened_tracker("tensorboard", tmp_path, "first") as tracker:
        track_run(run, tracker)
        tracker.numbers({"odd": math.nan, "none": None}, 1)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "first")).Reload()
    assert [event.value for event in events.Scalars("pretraining/loss")] == [3.0, 1.5]
    assert [event.value for event in events.Scalars("rounds/accuracy_after")] == [0.625]
    assert not {"odd", "none"} & set(events.Tags()["scalars"])


@pytest.mark.slow  # MLflow makes its database in ten seconds
def test_mlflow_keeps_runs_in_local_files_and_the_report_among_them(run, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with opened_tracker("mlflow", tmp_path, "first") as tracker:
        track_run(run, tracker)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("persephonee").experiment_id])
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    assert found.data.params["epochs"] == "7"
    assert [metric.value for metric in client.get_metric_history(found.info.run_id, "pretraining/loss")] == [3.0, 1.5]
    assert list((tmp_path / "mlflow").rglob("report.html"))
