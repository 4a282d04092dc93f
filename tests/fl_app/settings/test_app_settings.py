import tomllib
from pathlib import Path

import pytest

from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.fl_app.errors import RunConfigError
from persephonee.fl_app.settings.app_settings import PATH_KEYS, SMALL_RUN, AppSettings
from persephonee.multi_exit.settings import LossWeights
from persephonee.server.training.global_model_settings import GlobalModelSettings
from persephonee.server.training.pretraining_settings import PretrainSettings

REPOSITORY = Path(__file__).resolve().parents[3]


def test_settings_survive_the_way_through_a_run_configuration():
    settings = AppSettings.from_run_config(
        {"labels": "0.25", "alpha": 1.0, "beta": 0.5, "mean": "0.5,0.25", "std": "1,2", "model": "m", "clients": 7}
    )
    assert AppSettings.from_run_config(settings.to_run_config()) == settings
    assert settings.personalisation.weights.beta == 0.5
    assert settings.split.labels == 0.25
    assert settings.pretraining.mean == (0.5, 0.25)


def test_flwr_run_may_override_every_key():
    table = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    fields = AppSettings().to_run_config()
    assert table.keys() == fields.keys()
    # of the 3,550 built-in writers, few enough that the first run is over in minutes
    small = {**SMALL_RUN, "num-writers": 100}
    assert {key: value for key, value in table.items() if value != fields[key]} == small
    AppSettings.from_run_config(table)


def test_settings_that_contradict_what_they_follow_from_are_refused():
    with pytest.raises(RunConfigError, match="contradicts loss"):
        AppSettings(personalisation=PersonalisationSettings(weights=LossWeights(beta=2.0)))
    with pytest.raises(RunConfigError, match="contradicts seed"):
        AppSettings(pretraining=GlobalModelSettings(training=PretrainSettings(seed=4)))
    with pytest.raises(RunConfigError, match=r"contradicts paths\.sources"):
        AppSettings(pretraining=GlobalModelSettings(sources=("my_cnn",)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"epoch": 3}, "epoch is no run-config key; did you mean epochs?"),
        ({"nonsense": 3}, "nonsense is no run-config key; there are "),
        ({"epochs": "3"}, "epochs='3' is str; expected int."),
        ({"epochs": True}, "epochs=True is bool; expected int."),
        ({"resume": 1}, "resume=1 is int; expected bool."),
        ({"learning-rate": "fast"}, "learning-rate='fast' is str; expected float."),
        ({"drop-tolerance": 1.5}, "drop_tolerance=1.5"),
        ({"drop-tolerance": float("nan")}, "drop_tolerance=nan"),
        ({"test-fraction": -0.1}, "test_fraction=-0.1"),
        ({"labels": "some"}, "labels='some' is not known; say all, none, or a fraction in [0, 1]."),
        ({"labels": 1.5}, "labels=1.5"),
        ({"labels": float("nan")}, "labels=nan"),
        ({"labels": True}, "labels=True"),
        ({"alpha": 1.0, "gamma": 1.0}, "alpha=1.0 and gamma=1.0 exclude each other"),
        ({"alpha": 1.0, "scheme": "supervised"}, "own weights exclude each other"),
        ({"scheme": "magic"}, "scheme='magic' is unknown"),
        ({"clients": -1}, "clients=-1"),
        ({"rounds": 0}, "rounds=0"),
        ({"min-reply-fraction": 2}, "min-reply-fraction=2"),
        ({"enough-fraction": 0.4}, "enough-fraction=0.4 is out of range"),
        ({"enough-fraction": 1.1}, "enough-fraction=1.1"),
        ({"round-deadline": 0.0}, "round-deadline=0.0"),
        ({"round-deadline": float("inf")}, "round-deadline=inf"),
        ({"seed": -1}, "seed=-1"),
        ({"dataset": "mnist"}, "mnist is not known"),
        ({"mean": "a,b"}, "mean='a,b'"),
        ({"pretrain-mode": "all"}, "mode='all'"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(config, words):
    with pytest.raises(RunConfigError) as caught:
        AppSettings.from_run_config(config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_number_serves_as_a_float_and_labels_as_a_number():
    settings = AppSettings.from_run_config({"learning-rate": 1, "labels": 0})
    assert settings.personalisation.learning_rate == 1.0
    assert settings.split.labels == 0.0


def test_auto_follows_what_is_labelled():
    def weights(labels):
        return AppSettings.from_run_config({"labels": labels}).personalisation.weights

    assert (weights("all").alpha, weights("all").beta) == (1.0, 0.0)
    assert (weights("none").alpha, weights("none").beta) == (0.0, 1.0)
    assert (weights("0.5").alpha, weights("0.5").beta) == (1.0, 1.0)


def test_every_path_becomes_absolute_and_every_other_value_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {key: key for key in PATH_KEYS}
    before = AppSettings.from_run_config({**paths, "dataset": "parquet"})
    after = before.with_absolute_paths().to_run_config()
    assert {key for key in after if after[key] != before.to_run_config()[key]} == PATH_KEYS
    assert all(after[key] == str(tmp_path / key) for key in PATH_KEYS)


def test_a_pretrained_model_belongs_to_the_settings_that_make_it():
    folder = AppSettings().model_folder(1).name
    assert AppSettings.from_run_config({"epochs": 3, "clients": 5}).model_folder(1).name == folder
    for change in ({"seed": 1}, {"num-writers": 10}, {"pretrain-epochs": 2}, {"num-exits": 3}):
        assert AppSettings.from_run_config(change).model_folder(1).name != folder
