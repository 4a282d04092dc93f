"""What users' images look like is computed once in a simulation, and never taken for what other images look like."""

import numpy as np
import pandas as pd
import pytest

from persephonee.clients.personalisation import feature_cache
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.fl_app.client_side import client_app
from persephonee.fl_app.client_side.kept_features import KeptFeatures
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


def test_the_same_images_are_computed_once_and_others_anew(network):
    kept = KeptFeatures()
    first = kept.features(network, "M", user(0), FAST, ())
    assert kept.features(network, "M", user(0), FAST, ()) is first
    other = kept.features(network, "M", user(1), FAST, ())
    assert other is not first
    assert not np.array_equal(other.last_exit_logits, first.last_exit_logits)


def test_features_of_one_model_are_never_given_for_another(network):
    kept = KeptFeatures()
    first = kept.features(network, "M", user(0), FAST, ())
    assert kept.features(network, "N", user(0), FAST, ()) is not first
    assert kept.features(network, "M", user(0), FAST, ()) is not first


def test_what_is_kept_gives_the_logits_of_the_heads(network):
    own = as_arrays(network.exit_state())
    changed = with_classifiers(own, [2 * matrix for matrix in classifiers_of(own)])
    samples = user(0)
    kept = KeptFeatures().features(network, "M", samples, FAST, (changed,))
    cache = feature_cache.fill_cache(network, samples.images)
    every = np.arange(len(samples))
    for exits in (own, changed):
        np.testing.assert_allclose(kept.exit_logits(exits, every), cache.exit_logits(exits, every), atol=1e-5)


def test_exits_that_differ_in_more_than_their_classifiers_get_none(network):
    own = as_arrays(network.exit_state())
    # the blend of a pooled head comes before its classifier
    (blend,) = (name for name in own if name.startswith("heads.1.") and own[name].ndim < 2 and "classifier" not in name)
    assert KeptFeatures().features(network, "M", user(0), FAST, ({**own, blend: own[blend] + 1},)) is None


def test_the_papers_schedule_and_a_memory_budget_get_none(network):
    for settings in (PersonalisationSettings(), PersonalisationSettings(schedule="fast", memory_budget="1GB")):
        assert KeptFeatures().features(network, "M", user(0), settings, ()) is None


def test_once_it_is_full_nothing_more_is_kept(network):
    kept = KeptFeatures(most_bytes=1)
    first = kept.features(network, "M", user(0), FAST, ())
    assert first is not None
    assert kept.features(network, "M", user(0), FAST, ()) is not first


def test_in_a_run_with_shared_exits_each_users_images_go_through_the_backbone_once(
    settings, simulated_nodes, make_grid, monkeypatch, tmp_path
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
    monkeypatch.setattr(client_app, "_KEPT", KeptFeatures(most_bytes=0))
    anew = AppSettings.from_run_config({**config, "run-dir": str(tmp_path / "anew")})
    other = run(make_grid(simulated_nodes(4), anew), anew)
    assert (kept / "exits.parquet").read_bytes() == (other / "exits.parquet").read_bytes()
    assert list(pd.read_parquet(kept / "clients.parquet").status) == ["ok"] * 12
