import sys

import pytest

from tests.commands.command_line import NETWORK, call, refused


@pytest.mark.parametrize("verb", [("pretrain", *NETWORK, "--out"), ("simulate", "--run-dir")])
def test_a_tracker_that_is_missing_is_told_before_anything_is_written(monkeypatch, tmp_path, data_text, verb):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    sentence = refused(*verb, tmp_path / "new", *data_text, "--track", "mlflow")
    assert 'pip install "persephonee[mlflow]"' in sentence
    assert not (tmp_path / "new").exists()


def test_pretraining_writes_its_curves_beside_the_model(tmp_path, data_text):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--epochs", 2, "--batch-size", 32, "--calibration-users", 0, "--track", "tensorboard")
    done = call("pretrain", *NETWORK, *data_text, "--out", tmp_path / "M", *words)
    assert done.exit_code == 0, done.output
    events = EventAccumulator(str(tmp_path / "tensorboard" / "M")).Reload()
    assert [event.step for event in events.Scalars("pretraining/accuracy_exit_0")] == [1, 2]
