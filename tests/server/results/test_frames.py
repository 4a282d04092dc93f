import pytest

import persephonee
from persephonee.server.errors import ServerError
from persephonee.server.results.pretraining_curves import CURVES_NAME, read_curves, write_curves
from tests.server.made_runs import write_run

EPOCH = {"epoch": 1, "learning_rate": 0.1, "train_loss": 3.0, "validation_accuracy": (0.5, 0.75)}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", {"a": 0.5, "b": 0.75})


def test_a_run_comes_as_frames_by_one_call(run):
    write_curves(run.path, [EPOCH])
    found = persephonee.load_run(run.path)
    after = found.exits[(found.exits.stage == "after") & (found.exits.exit == 0)]
    assert after.accuracy.tolist() == [0.5, 0.75]
    assert found.clients.set_index("client_id").accuracy_after.dropna().to_dict() == {"a": 0.5, "b": 0.75}
    assert found.pretraining.pivot(index="epoch", columns="exit", values="accuracy").loc[1].tolist() == [0.5, 0.75]
    assert found.summary.policy.accuracy_after.mean == 0.625
    assert found.config["dataset"] == "parquet"
    assert found.held_out.empty


def test_a_run_without_curves_has_none(run):
    write_curves(run.path, [])
    assert not (run.path / CURVES_NAME).exists()
    assert persephonee.load_run(str(run.path)).pretraining.empty


def test_epochs_that_an_older_model_recorded_otherwise_are_left_out(run):
    write_curves(run.path, [{"epoch": 1}, {**EPOCH, "train_loss": float("nan")}, EPOCH])
    assert [row["epoch"] for row in read_curves(run.path)] == [1]


@pytest.mark.parametrize(
    "text", ["{", '{"epochs": 3}', '{"epochs": [{"epoch": "x"}]}', '{"epochs": [1]}', "[]", '{"rows": []}']
)
def test_damaged_curves_are_refused_in_a_sentence(run, text):
    (run.path / CURVES_NAME).write_text(text)
    with pytest.raises(ServerError, match="remove it"):
        read_curves(run.path)
