import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.prior import calibrated_probabilities, estimate_class_prior

K = 20
UNIFORM = np.full(K, 1 / K)


def draw_user(frequencies, n, seed, spread=1.2):
    """Draw classes by their frequencies, and the exact posterior under uniform frequencies of a Gaussian observation.

    The observation is the class's corner of a simplex plus noise, so that log p(k | x) is x_k / spread^2 + const.
    """
    generator = np.random.default_rng(seed)
    labels = generator.choice(len(frequencies), size=n, p=frequencies)
    seen = np.eye(len(frequencies))[labels] * 2 + spread * generator.standard_normal((n, len(frequencies)))
    return labels, calibrated_probabilities(2 * seen / spread**2, 1.0, np.zeros(len(frequencies)))


def estimate(probabilities, labels=None, frequencies=UNIFORM):
    labels = np.full(len(probabilities), -1) if labels is None else labels
    return estimate_class_prior(probabilities, frequencies, np.random.default_rng(0), labels)


SKEWED = np.where(np.arange(K) < 4, 0.22, 0.12 / 16)


def test_a_skewed_users_frequencies_are_found_without_labels():
    _, probabilities = draw_user(SKEWED, 400, seed=1)
    prior = estimate(probabilities)
    assert prior.is_shifted
    assert prior.frequencies.sum() == pytest.approx(1)
    # 0.88 of the samples are of these classes; a few hundred unsure samples find most of that
    assert 0.75 < prior.frequencies[:4].sum() < 0.92
    # the fixed point of expectation maximisation: the mean posterior, with the pull's pseudo-samples
    posterior = probabilities * prior.frequencies / UNIFORM
    counts = (posterior / posterior.sum(axis=1, keepdims=True)).sum(axis=0)
    fixed = (counts + prior.strength * UNIFORM) / (400 + prior.strength)
    np.testing.assert_allclose(prior.frequencies, fixed, atol=2e-4)
    np.testing.assert_allclose(prior.shift, np.log(prior.frequencies / UNIFORM))


def test_the_shift_makes_predictions_of_new_samples_better():
    gains = []
    for seed in range(5):
        _, probabilities = draw_user(SKEWED, 225, seed=seed)
        labels, fresh = draw_user(SKEWED, 1000, seed=seed + 100)
        shifted = np.log(fresh) + estimate(probabilities).shift
        gains.append((shifted.argmax(1) == labels).mean() - (fresh.argmax(1) == labels).mean())
    # the bound is what the true frequencies gain
    assert min(gains) > 0.05


def test_where_there_is_no_skew_exactly_nothing_changes():
    shifted = [estimate(draw_user(UNIFORM, n, seed=seed)[1]) for seed in range(50) for n in (56, 225)]
    assert sum(prior.is_shifted for prior in shifted) <= 4
    for prior in shifted:
        if not prior.is_shifted:
            assert not prior.shift.any()
            np.testing.assert_array_equal(prior.frequencies, UNIFORM)


def test_with_all_labels_the_frequencies_are_counts_and_the_pull():
    labels, probabilities = draw_user(SKEWED, 300, seed=3)
    prior = estimate(probabilities, labels)
    counts = np.bincount(labels, minlength=K)
    np.testing.assert_allclose(prior.frequencies, (counts + prior.strength * UNIFORM) / (300 + prior.strength))


def test_labels_of_some_samples_bring_the_estimate_nearer_to_the_truth():
    far, near = [], []
    for seed in range(8):
        labels, probabilities = draw_user(SKEWED, 200, seed=seed, spread=2.5)
        some = np.where(np.arange(200) < 100, labels, -1)
        far.append(np.abs(estimate(probabilities).frequencies - SKEWED).sum())
        near.append(np.abs(estimate(probabilities, some).frequencies - SKEWED).sum())
    assert np.mean(near) < np.mean(far)


def test_expectation_maximisation_ends_where_the_likelihood_does_not_rise():
    _, probabilities = draw_user(SKEWED, 400, seed=5)
    prior = estimate(probabilities)

    def penalised(frequencies):
        pull = prior.strength * (UNIFORM * np.log(frequencies)).sum()
        return np.log(probabilities / UNIFORM @ frequencies).sum() + pull

    generator = np.random.default_rng(0)
    for _ in range(50):
        other = prior.frequencies * np.exp(0.3 * generator.standard_normal(K))
        assert penalised(other / other.sum()) < penalised(prior.frequencies)


def test_a_handful_of_samples_changes_nothing():
    assert not estimate(draw_user(SKEWED, 9, seed=0)[1]).is_shifted


@pytest.mark.parametrize(
    ("probabilities", "frequencies", "message"),
    [
        (np.full((12, 3), 1 / 3), np.full(4, 1 / 4), "do not fit"),
        (np.full((12, 3), 1 / 3), np.array([0.5, 0.5, 0.0]), "not above 0"),
        (np.full((12, 3), np.nan), np.full(3, 1 / 3), "not finite"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities, frequencies, message):
    with pytest.raises(ClientSettingsError, match=message):
        estimate(probabilities, frequencies=frequencies)


def test_calibrated_probabilities_are_a_softmax_with_temperature_and_bias():
    logits, bias = np.array([[1.0, 2.0], [800.0, -800.0]]), np.array([0.5, 0.0])
    found = calibrated_probabilities(logits, 2.0, bias)
    assert found[0, 0] == pytest.approx(1 / (1 + np.exp(1.0 - 1.0)))
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_a_shift_that_is_worth_less_than_the_models_bound_is_none():
    _, probabilities = draw_user(SKEWED, 400, seed=1)
    unlabelled = np.full(400, -1)
    found = estimate(probabilities)
    assert found.gain > 0.1
    for bound, is_shifted in ((found.gain - 1e-9, True), (found.gain, False)):
        again = estimate_class_prior(probabilities, UNIFORM, np.random.default_rng(0), unlabelled, bound)
        assert again.is_shifted == is_shifted
