"""What users' images look like is computed once in a simulation, and never taken for what other images look like."""

import numpy as np
import pandas as pd
import pytest

from persephonee.clients.personalisation import feature_cache
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.fl_app.client_side import kept_features as module
from persephonee.fl_app.client_side.kept_features import FEATURES_NAME, kept_features
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.exit_weights import as_arrays, classifiers_of, with_classifiers
from tests.fl_app.whole_runs import run
from tests.tiny_cnn import NAME, SIDE, SOURCE, user_images

FAST = PersonalisationSettings(schedule="fast")


@pytest.fixture
def network():
    made = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    return made.freeze_backbone()


def user(number: int, count: int = 20) -> UserSamples:
    images, labels = user_images(number, count)
    return UserSamples(client_id=f"u{number}", images=images[:, None], labels=labels)


@pytest.fixture
def passes(monkeypatch):
    """Count the passes of the frozen network."""
    counted = []
    fill = feature_cache.fill_cache
    monkeypatch.setattr(feature_cache, "fill_cache", lambda *args: counted.append(1) or fill(*args))
    return counted


def test_the_same_images_are_computed_once_and_others_or_another_model_anew(network, tmp_path, passes):
    first = kept_features(tmp_path, network, "M", user(0), FAST, ())
    again = kept_features(tmp_path, network, "M", user(0), FAST, ())
    assert len(passes) == 1
    for one, other in zip(
        (*first.embedded, first.last_exit_logits), (*again.embedded, again.last_exit_logits), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    other = kept_features(tmp_path, network, "M", user(1), FAST, ())
    assert not np.array_equal(other.last_exit_logits, first.last_exit_logits)
    kept_features(tmp_path, network, "N", user(1), FAST, ())
    kept_features(tmp_path, network, "N", user(1, count=19), FAST, ())
    assert len(passes) == 4


def test_a_damaged_file_is_computed_again(network, tmp_path, passes):
    first = kept_features(tmp_path, network, "M", user(0), FAST, ())
    path = tmp_path / FEATURES_NAME
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b""):
        path.write_bytes(damaged)
        again = kept_features(tmp_path, network, "M", user(0), FAST, ())
        np.testing.assert_array_equal(again.last_exit_logits, first.last_exit_logits)
    assert len(passes) == 4


def test_what_is_kept_gives_the_logits_of_the_heads(network, tmp_path):
    own = as_arrays(network.exit_state())
    changed = with_classifiers(own, [2 * matrix for matrix in classifiers_of(own)])
    samples = user(0)
    kept = kept_features(tmp_path, network, "M", samples, FAST, (changed,))
    cache = feature_cache.fill_cache(network, samples.images)
    every = np.arange(len(samples))
    for exits in (own, changed):
        np.testing.assert_allclose(kept.exit_logits(exits, every), cache.exit_logits(exits, every), atol=1e-5)


def test_exits_that_differ_in_more_than_their_classifiers_get_none(network, tmp_path):
    own = as_arrays(network.exit_state())
    # the blend of a pooled head comes before its classifier
    (blend,) = (name for name in own if name.startswith("heads.1.") and own[name].ndim < 2 and "classifier" not in name)
    assert kept_features(tmp_path, network, "M", user(0), FAST, ({**own, blend: own[blend] + 1},)) is None


def test_the_papers_schedule_and_a_memory_budget_get_none(network, tmp_path):
    for settings in (PersonalisationSettings(), PersonalisationSettings(schedule="fast", memory_budget="1GB")):
        assert kept_features(tmp_path, network, "M", user(0), settings, ()) is None


def test_in_a_run_with_shared_exits_each_users_images_go_through_the_backbone_once(
    settings, simulated_nodes, make_grid, monkeypatch, tmp_path, passes
):
    passes = []
    fill = feature_cache.fill_cache
    monkeypatch.setattr(feature_cache, "fill_cache", lambda *args: passes.append(1) or fill(*args))
    # the federated rule looks at the samples once more, in a message of its own
    config = {
        **settings.to_run_config(),
        "rule": "paper",
        "schedule": "fast",
        "rounds": 3,
        "share-exits": True,
        "sharing-fraction": 1.0,
    }
    many = AppSettings.from_run_config(config)
    kept = run(make_grid(simulated_nodes(4), many), many)
    assert len(passes) == 4
    # and the figures are those of a run that keeps nothing
    monkeypatch.setattr(module, "_read", lambda path, key: None)
    anew = AppSettings.from_run_config({**config, "run-dir": str(tmp_path / "anew")})
    other = run(make_grid(simulated_nodes(4), anew), anew)
    assert (kept / "exits.parquet").read_bytes() == (other / "exits.parquet").read_bytes()
    assert list(pd.read_parquet(kept / "clients.parquet").status) == ["ok"] * 12
