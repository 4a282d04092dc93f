"""Which images look like the user's own, against formulas and images made by hand."""

import dataclasses
import json

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.familiar_images import FamiliarImages, familiar_images, image_statistics
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.reports import Stage
from persephonee.clients.personalisation.risk.risk_curves import candidate_policies
from persephonee.clients.personalisation.risk.risk_pools import Certificate, RiskPool
from persephonee.clients.personalisation.settings import PersonalisationSettings

POOLED = PersonalisationSettings(rule="federated", schedule="fast")


@pytest.fixture
def own(draw_user) -> np.ndarray:
    return draw_user(n=200, tilt=1, seed=3).images


@pytest.fixture
def lenient() -> RiskPool:
    """A pool under which the cheapest candidate always qualifies."""
    count = len(candidate_policies(2))
    certificate = Certificate(tolerance=0.01, delta=0.1, strength=10**6, level=0.02)
    return RiskPool(
        rule="federated",
        risks=np.zeros(count, dtype=np.int64),
        costs=np.arange(count) * 10,
        users=10,
        certificates=(certificate,),
    )


def test_the_statistics_are_mean_deviation_and_the_difference_of_neighbours():
    image = np.array([[[[0, 255], [255, 0]]], [[[51, 51], [51, 51]]]], dtype=np.uint8)
    # of a chequered image every neighbour differs by 1, and there are two directions
    np.testing.assert_allclose(image_statistics(image), [[0.5, 0.5, np.sqrt(2)], [0.2, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(image_statistics(image / np.float32(255)), image_statistics(image), atol=1e-6)
    assert image_statistics(np.zeros((0, 3, 4, 4), dtype=np.uint8)).shape == (0, 3)
    assert image_statistics(np.full((1, 3, 1, 1), 255, dtype=np.uint8)).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("fraction", [0.02, 0.2])
def test_about_the_wanted_fraction_of_other_images_of_the_user_is_unfamiliar(fraction):
    drawn = np.random.default_rng(0).multivariate_normal([0.3, 0.2, 0.1], np.diag([0.01, 0.004, 0.002]), size=60_000)
    familiar = FamiliarImages.of(drawn[:20_000], fraction)
    away = np.linalg.norm((drawn[20_000:] - np.array(familiar.centre)) @ np.array(familiar.whitening), axis=1)
    assert np.mean(away > familiar.bound) == pytest.approx(fraction, abs=0.3 * fraction)


def test_whitened_statistics_have_about_the_unit_covariance(own):
    statistics = image_statistics(own)
    familiar = FamiliarImages.of(statistics, 0.02)
    white = (statistics - np.array(familiar.centre)) @ np.array(familiar.whitening)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-9)
    assert 0.3 < np.trace(np.cov(white.T)) / 3 <= 1.2


def test_inverted_noisy_and_faint_images_are_unfamiliar_and_new_ones_of_the_user_are_not(own, draw_user):
    familiar = FamiliarImages.of(image_statistics(own), 0.02)
    noise = 60 * np.random.default_rng(0).standard_normal(own.shape)
    noisy = np.clip(own + noise, 0, 255).astype(np.uint8)
    assert familiar.unfamiliar(draw_user(n=200, tilt=1, seed=4).images).mean() < 0.08
    for strange in (255 - own, noisy, own // 4):
        assert familiar.unfamiliar(strange).mean() > 0.9


def test_images_that_are_all_alike_make_a_check_that_refuses_others():
    grey = np.full((30, 1, 8, 8), 100, dtype=np.uint8)
    familiar = FamiliarImages.of(image_statistics(grey), 0.02)
    assert not familiar.unfamiliar(grey).any() and familiar.unfamiliar(255 - grey).all()


def test_the_papers_rule_a_fraction_of_0_and_too_few_images_make_no_check(user, split):
    assert familiar_images(user, split, POOLED) is not None
    few = dataclasses.replace(split, train=split.train[:10], calibration=split.calibration[:9])
    for samples_split, settings in (
        (split, dataclasses.replace(POOLED, rule="paper")),
        (split, dataclasses.replace(POOLED, unfamiliar_fraction=0.0)),
        (few, POOLED),
    ):
        assert familiar_images(user, samples_split, settings) is None


def test_test_images_play_no_part_in_what_is_familiar(user, split):
    images = user.images.copy()
    images[split.test] = 255 - images[split.test]
    changed = dataclasses.replace(user, images=images)
    assert familiar_images(changed, split, POOLED) == familiar_images(user, split, POOLED)


def test_a_policy_comes_back_from_a_file_with_its_check_and_an_older_one_without(own):
    familiar = FamiliarImages.of(image_statistics(own), 0.02)
    policy = ExitPolicy(threshold=0.5, exits_in_use=(0,), num_exits=2, familiar=familiar)
    values = json.loads(json.dumps(policy.to_json()))
    assert ExitPolicy.from_json(values) == policy
    del values["familiar"]
    assert ExitPolicy.from_json(values) == dataclasses.replace(policy, familiar=None)


@pytest.mark.parametrize(
    "change",
    [
        {"bound": -1.0},
        {"bound": float("nan")},
        {"centre": (0.0, 0.0)},
        {"whitening": ((1.0, 0.0, 0.0),) * 2},
        {"whitening": ((1.0, 0.0, "a"),) * 3},
        {"centre": (True, 0.0, 0.0)},
    ],
)
def test_a_check_that_cannot_be_is_refused(change):
    good = {"centre": (0.0, 0.0, 0.0), "whitening": ((1.0, 0.0, 0.0),) * 3, "bound": 1.0}
    FamiliarImages(**good)
    with pytest.raises(ClientSettingsError, match="run a round again"):
        FamiliarImages(**{**good, **change})


def test_a_round_counts_its_unfamiliar_images_at_the_last_exit_and_stores_the_check(
    toy_network, user, split, lenient, tmp_path
):
    images = user.images.copy()
    images[split.test[::2]] = 255 - images[split.test[::2]]
    strange = dataclasses.replace(user, images=images)
    store = ExitStore(tmp_path)
    result = personalise(toy_network, strange, split, POOLED, store=store, pool=lenient)
    assert result.policy.exits_in_use and result.policy.familiar == familiar_images(strange, split, POOLED)
    expected = result.policy.familiar.unfamiliar(images[split.test])
    assert expected[::2].all() and not expected.all()
    assert (result.outputs.test.confidences[:-1, expected] == 0).all()
    assert (result.outputs.all.confidences[:-1, len(split.calibration) :][:, expected] == 0).all()
    last = result.report.exits_at(Stage.AFTER)[-1]
    assert last.exit_rate >= expected.mean()
    stored = store.load(toy_network.backbone_fingerprint, toy_network.exit_state(), user.client_id)
    assert stored is not None and stored.policy == result.policy
