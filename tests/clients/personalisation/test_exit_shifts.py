import copy
import dataclasses

import numpy as np
import pytest
import torch

from persephonee.clients.inference.inference_engine import InferenceEngine
from persephonee.clients.personalisation.batched_personalise import BatchUser, personalise_batch
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.data_partitions.samples import to_float
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.exit_weights import as_arrays

TEMPERATURES = (0.5, 1.5, 2.0)
ALONE = PersonalisationSettings(weights=loss_weights("prior", 0.0))
WITHOUT = dataclasses.replace(ALONE, use_prior=False)


@pytest.fixture
def network(toy_network):
    """The toy network with a calibration that takes its logits nearly as they are."""
    toy_network.calibration = ExitCalibration(
        temperatures=TEMPERATURES, biases=((0.0,) * 4,) * 3, frequencies=(0.25,) * 4
    )
    return toy_network


@pytest.fixture
def skewed(draw_user):
    """A user who writes classes 0 and 1 alone."""
    user = draw_user(n=240)
    kept = user.labels < 2
    return dataclasses.replace(user, images=user.images[kept], labels=user.labels[kept])


def unlabelled_split(user):
    return split_samples(user, SplitSettings(labels=0.0), seed=0)


def classifiers(weights):
    return [weights["heads.0.classifier.bias"], weights["heads.1.classifier.bias"]]


def test_a_skewed_user_without_labels_shifts_every_exit_by_its_temperature_and_nothing_else(network, skewed):
    before = as_arrays(network.exit_state())
    done = personalise(network, skewed, unlabelled_split(skewed), ALONE)
    shift = done.shifts[0] / TEMPERATURES[0]
    # the user's own classes gain, and the others lose
    assert (shift[:2] > 0.1).all()
    assert (shift[2:] < -1).all()
    for exit, temperature in enumerate(TEMPERATURES):
        np.testing.assert_allclose(done.shifts[exit], temperature * shift, rtol=1e-5)
    for exit, (old, new) in enumerate(zip(classifiers(before), classifiers(done.exit_weights), strict=True)):
        np.testing.assert_allclose(new - old, done.shifts[exit], atol=1e-5)
    others = [name for name in before if not name.endswith("classifier.bias")]
    assert all(np.array_equal(before[name], done.exit_weights[name]) for name in others)


def test_a_user_of_all_classes_changes_exactly_nothing(network, user):
    for weights in (ALONE.weights, loss_weights("auto", 0.0)):
        split = unlabelled_split(user)
        with_prior = personalise(network, user, split, dataclasses.replace(ALONE, weights=weights))
        without = personalise(network, user, split, dataclasses.replace(WITHOUT, weights=weights))
        assert with_prior.shifts is None
        assert all(np.array_equal(without.exit_weights[k], with_prior.exit_weights[k]) for k in without.exit_weights)
        assert with_prior.policy == without.policy


def test_a_model_without_a_calibration_has_no_prior(toy_network, skewed):
    assert personalise(toy_network, skewed, unlabelled_split(skewed), ALONE).shifts is None


def test_the_raw_last_exit_stays_bit_identical_and_is_what_the_report_calls_the_original(network, skewed):
    images, split = to_float(skewed.images), unlabelled_split(skewed)
    with torch.no_grad():
        raw = network(images)[-1]
    done = personalise(network, skewed, split, ALONE)
    network.load_exit_state(done.exit_weights)
    with torch.no_grad():
        assert np.array_equal(network(images)[-1], raw)
    correct = raw.argmax(dim=1)[split.test] == torch.from_numpy(skewed.labels[split.test])
    assert done.report.accuracy_original == pytest.approx(correct.numpy().mean())


@pytest.mark.parametrize("adapts", [True, False])
def test_the_engine_adds_the_last_shift_where_the_settings_adapt_the_last_exit(network, skewed, adapts):
    settings = dataclasses.replace(ALONE, adapt_last_exit=adapts)
    done = personalise(network, skewed, unlabelled_split(skewed), settings)
    images = skewed.images[:9]
    raw = compute_features(network, skewed.images[:9]).last_logits.numpy()
    network.load_exit_state(done.exit_weights)
    explored = InferenceEngine(network, done.policy, last_shift=done.shifts[-1]).explore(images)
    expected = raw + (done.shifts[-1] if adapts else 0.0)
    assert done.shifts[-1].any() == adapts
    np.testing.assert_allclose(explored.logits[-1], expected, atol=1e-5)


@pytest.mark.parametrize("schedule", ["paper", "fast"])
@pytest.mark.parametrize("labels", [1.0, 0.0])
def test_what_may_be_shared_holds_no_class_frequencies(network, skewed, schedule, labels):
    split = split_samples(skewed, SplitSettings(labels=labels), seed=0)
    settings = PersonalisationSettings(weights=loss_weights("prior", labels), schedule=schedule)
    done = personalise(network, skewed, split, settings)
    assert done.shifts is not None
    for name, tensor in network.exit_state().items():
        np.testing.assert_allclose(done.trained[name], tensor, atol=1e-6, rtol=1e-6)
    # nor does the report, whatever its fields: no number of it is a class's frequency or shift
    said = [v for v in dataclasses.asdict(done.report).values() if isinstance(v, float)]
    assert not {round(float(s), 4) for s in done.shifts.flatten()} & {round(v, 4) for v in said if v}


def test_a_second_round_replaces_the_frequencies_of_the_first(network, skewed, user, tmp_path):
    store, split = ExitStore(tmp_path), unlabelled_split(skewed)
    first = personalise(network, skewed, split, ALONE, store=store)
    again = personalise(network, skewed, split, ALONE, store=store, round_number=2)
    for old, new in zip(classifiers(first.exit_weights), classifiers(again.exit_weights), strict=True):
        # the folds are drawn anew, the frequencies differ little
        np.testing.assert_allclose(new, old, atol=0.3, rtol=0)
    # a user who writes all classes from now on has the global exits again
    balanced = dataclasses.replace(user, client_id=skewed.client_id)
    last = personalise(network, balanced, unlabelled_split(balanced), ALONE, store=ExitStore(tmp_path), round_number=3)
    assert last.shifts is None
    for old, new in zip(classifiers(network.exit_state()), classifiers(last.exit_weights), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5, rtol=0)


def test_an_exit_that_goes_back_keeps_the_shift_that_it_had(network, skewed):
    ruinous = PersonalisationSettings(learning_rate=30.0, momentum=0.0, epochs=1)
    done = personalise(network, skewed, split_samples(skewed, SplitSettings(), seed=0), ruinous)
    assert 0 in done.report.rolled_back_exits
    assert not done.shifts[0].any()
    assert np.array_equal(done.exit_weights["heads.0.classifier.bias"], network.exit_state()["heads.0.classifier.bias"])


@pytest.mark.parametrize("schedule", ["paper", "fast"])
def test_users_in_a_batch_get_the_frequencies_that_they_get_alone(network, skewed, user, schedule):
    users = [dataclasses.replace(skewed, client_id="a"), dataclasses.replace(user, client_id="b")]
    weights = loss_weights("self-distillation", 0.0)
    for settings in (ALONE, PersonalisationSettings(weights=weights, schedule=schedule, epochs=2)):
        together = personalise_batch(
            network, [BatchUser(samples=u, split=unlabelled_split(u)) for u in users], settings, seed=3
        )
        for one, ours in zip(users, together, strict=True):
            alone = personalise(network, one, unlabelled_split(one), settings, seed=3)
            assert (ours.shifts is None) == (alone.shifts is None)
            for name, tensor in alone.exit_weights.items():
                np.testing.assert_allclose(ours.exit_weights[name], tensor, atol=2e-4, rtol=1e-3)


def test_distillation_takes_the_adapted_last_exit_as_its_teacher(network, skewed):
    split, weights = unlabelled_split(skewed), loss_weights("self-distillation", 0.0)
    settings = PersonalisationSettings(weights=weights, schedule="fast")
    done = personalise(network, skewed, split, settings)
    shifted = copy.deepcopy(network)
    # the oracle: a network whose exits and whose last layer have the shifts built in, and no prior of its own
    with torch.no_grad():
        for head, shift in zip(shifted.heads, done.shifts, strict=False):
            head.classifier.bias.add_(torch.from_numpy(shift))
        [layer for layer in shifted.stages.modules() if isinstance(layer, torch.nn.Linear)][-1].bias.add_(
            torch.from_numpy(done.shifts[-1])
        )
    oracle = personalise(shifted, skewed, split, dataclasses.replace(settings, use_prior=False))
    for name, tensor in oracle.exit_weights.items():
        np.testing.assert_allclose(done.exit_weights[name], tensor, atol=1e-4, rtol=1e-3)


def test_the_models_bound_holds_without_labels_and_not_where_all_samples_have_one(network, skewed):
    network.calibration = dataclasses.replace(network.calibration, least_gain=9.0)
    assert personalise(network, skewed, unlabelled_split(skewed), ALONE).shifts is None
    assert personalise(network, skewed, split_samples(skewed, SplitSettings(), seed=0), ALONE).shifts is not None
