from types import SimpleNamespace

import numpy as np
import pytest
import torch

from persephonee.clients.runtime.drift import DriftSettings
from persephonee.clients.runtime.exploration import Explored, Validation
from persephonee.data_partitions.errors import NotEnoughUsersError
from persephonee.data_partitions.sources.parquet_users import ParquetUsers
from persephonee.experiments.lifelong.detection import Watched, measure
from persephonee.experiments.lifelong.device_life import STRATEGIES, live, orchestrator_settings, original_predictions
from persephonee.experiments.lifelong.experiment import gap_once_noticed
from persephonee.experiments.lifelong.figure import draw_lives
from persephonee.experiments.lifelong.streams import Stream, qmnist_streams, synthetic_streams
from persephonee.multi_exit.building import build_network
from tests.conftest import real_data
from tests.tiny_cnn import NAME, SIDE, SOURCE, user_images


@pytest.fixture(scope="module")
def stream() -> Stream:
    (first, labels), (second, more) = user_images(1, 220), user_images(2, 120)
    images = torch.from_numpy(np.concatenate([first, second]))[:, None]
    return Stream(name="u1", images=images, labels=np.concatenate([labels, more]), shift=220)


@pytest.fixture(scope="module")
def network():
    return build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))


def test_a_life_has_a_record_of_every_sample_and_leaves_the_network_as_it_was(network, stream):
    before = network.fingerprint
    lives = {s: [live(network, stream, orchestrator_settings(s, 0.2, "plain"), seed=0)] for s in STRATEGIES}
    assert network.fingerprint == before
    for record in (records[0] for records in lives.values()):
        assert len(record.correct) == len(record.cost) == len(record.thresholds) == 340
        assert record.cost.min() > 0
    rounds = {strategy: len(records[0].rounds) for strategy, records in lives.items()}
    assert rounds["never personalised"] == 0
    assert rounds["personalised once"] <= 1 <= rounds["orchestrated"] or rounds["orchestrated"] == 0
    figure = draw_lives(lives, [original_predictions(network, stream)], "A life")
    assert len(figure.axes) == 18


def test_rounds_happen_by_night(network, stream):
    record = live(network, stream, orchestrator_settings("orchestrated", 0.2, "plain"), seed=0)
    done = [event for event in record.events if event.kind == "round done"]
    assert all(event.time.endswith("T02:00:00Z") for event in done)
    assert all(place % 10 == 0 for place in record.rounds)


def watched(before: float, after: float) -> Watched:
    generator = np.random.default_rng(0)

    def losses(mean: float, count: int) -> list[float]:
        return generator.exponential(mean, count).tolist()

    def explored(mean: float) -> list[Explored]:
        return [Explored(losses=(loss,), confidences=(0.9,), agrees=(True,)) for loss in losses(mean, 200)]

    validation = Validation(
        round=1, threshold=0.5, exits=(0,), agreement=1.0, early_fraction=1.0, losses=(tuple(losses(before, 100)),)
    )
    return Watched(validation=validation, before=explored(before), after=explored(after))


def test_a_large_shift_is_noticed_soon_and_no_shift_hardly_ever(monkeypatch):
    monkeypatch.setattr("persephonee.experiments.lifelong.detection.STEADY", 2000)
    settings = DriftSettings(rule="plain")
    shifted = measure([watched(0.1, 1.0)], settings, p_expl=0.5, repeats=5, seed=0)
    steady = measure([watched(0.1, 0.1)], settings, p_expl=0.5, repeats=5, seed=0)
    assert shifted.noticed == 1
    # a window of 40 explored samples is 80 samples long
    assert shifted.delay < 80 < steady.delay
    assert shifted.false_alarms < 20


def test_the_built_in_writers_change_hand_in_the_middle():
    (one, two) = synthetic_streams([], count=2, samples=30, seed=0)
    assert one.name != two.name
    assert (len(one.labels), one.shift) == (60, 30)


def test_qmnist_goes_from_employees_to_students_whom_the_model_has_not_seen():
    path = real_data("qmnist-by-writer/train.parquet")
    (stream,) = qmnist_streams(path, (), count=1, people=2, seed=0)
    assert 160 <= stream.shift <= 270
    assert len(stream.labels) == len(stream.images)
    users = ParquetUsers(path, user_column="writer_id", label_column="character").client_ids
    with pytest.raises(NotEnoughUsersError, match="ask for fewer"):
        qmnist_streams(path, users[20:], count=6, people=3, seed=0)


def test_the_gap_is_that_of_the_worst_window_once_the_shift_has_been_noticed():
    original, correct = np.ones(400, dtype=bool), np.ones(400, dtype=bool)
    correct[200:260], correct[300:330] = False, False
    noticed = SimpleNamespace(kind="drift", details={"frame": 262})
    early = SimpleNamespace(kind="drift", details={"frame": 100})
    record = SimpleNamespace(stream=SimpleNamespace(shift=200), correct=correct, events=[early, noticed])
    assert gap_once_noticed(record, original) == (62, pytest.approx(0.5))
    delay, gap = gap_once_noticed(SimpleNamespace(**{**vars(record), "events": [early]}), original)
    assert delay is None and np.isnan(gap)
