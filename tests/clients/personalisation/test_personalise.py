import copy
import dataclasses

import numpy as np
import pytest
import torch

from persephonee.clients.errors import ClientSettingsError, LabelsRequiredError, NonFiniteLossError
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.data_partitions.samples import to_float
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.errors import MultiExitError
from persephonee.multi_exit.settings import LossWeights
from tests.multi_exit.constructs import OwnCNN

SETTINGS = PersonalisationSettings(learning_rate=0.05)


def timeless(report):
    return dataclasses.replace(report, seconds_personalise=0.0)


def test_the_backbone_and_its_buffers_stay_bit_identical(toy_network, user, split):
    images = to_float(user.images)
    before = copy.deepcopy(toy_network.state_dict())
    with torch.no_grad():
        last_before = toy_network(images)[-1]
    result = personalise(toy_network, user, split, SETTINGS)
    toy_network.load_exit_state(result.exit_weights)
    after = toy_network.state_dict()
    assert all(np.array_equal(before[k], after[k]) for k in before if k.startswith("stages."))
    with torch.no_grad():
        assert np.array_equal(toy_network.train().eval()(images)[-1], last_before)


def test_the_global_exits_that_the_caller_passed_are_left_alone(toy_network, user, split):
    before = toy_network.exit_state()
    result = personalise(toy_network, user, split, SETTINGS)
    after = toy_network.exit_state()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert any(not np.array_equal(before[k], result.exit_weights[k]) for k in before)


@pytest.mark.parametrize(("labels", "shown"), [(1.0, "all"), (0.0, "none"), (0.25, "0.25")])
def test_personal_exits_are_better_on_the_users_own_test_samples(toy_network, user, labels, shown):
    split = split_samples(user, SplitSettings(labels=labels), seed=0)
    settings = dataclasses.replace(SETTINGS, weights=loss_weights("auto", labels))
    report = personalise(toy_network, user, split, settings).report
    half = len(report.exit_metrics) // 2
    assert report.labels == shown
    mean_before = sum(e.accuracy for e in report.exit_metrics[: half - 1])
    mean_after = sum(e.accuracy for e in report.exit_metrics[half:-1])
    assert mean_after >= mean_before
    assert report.exit_metrics[half - 1].accuracy == report.exit_metrics[-1].accuracy == report.accuracy_original
    assert sum(e.exit_rate for e in report.exit_metrics[half:]) == pytest.approx(1)


def test_labels_that_the_device_may_not_use_change_nothing(toy_network, user):
    split = split_samples(user, SplitSettings(labels=0.0), seed=0)
    settings = dataclasses.replace(SETTINGS, weights=loss_weights("auto", 0.0))
    shuffled = dataclasses.replace(user, labels=np.roll(user.labels, 1))
    ours = personalise(toy_network, user, split, settings)
    theirs = personalise(toy_network, shuffled, split, settings)
    assert all(np.array_equal(ours.exit_weights[k], theirs.exit_weights[k]) for k in ours.exit_weights)
    assert ours.policy == theirs.policy


def test_the_same_seed_gives_the_same_report_and_another_seed_other_exits(toy_network, user, split):
    first = personalise(toy_network, user, split, SETTINGS, seed=1)
    second = personalise(toy_network, user, split, SETTINGS, seed=1)
    other = personalise(toy_network, user, split, SETTINGS, seed=2)
    assert timeless(first.report) == timeless(second.report)
    assert all(np.array_equal(first.exit_weights[k], second.exit_weights[k]) for k in first.exit_weights)
    assert any(not np.array_equal(first.exit_weights[k], other.exit_weights[k]) for k in first.exit_weights)


def test_exits_that_got_worse_keep_their_previous_weights(toy_network, user, split):
    # an absurd learning rate that stays finite makes every exit worse
    ruinous = dataclasses.replace(SETTINGS, learning_rate=30.0, momentum=0.0, epochs=1)
    result = personalise(toy_network, user, split, ruinous)
    assert result.report.rolled_back_exits == (0, 1)
    before = toy_network.exit_state()
    assert all(np.array_equal(before[k], result.exit_weights[k]) for k in before)
    half = len(result.report.exit_metrics) // 2
    for row_before, row_after in zip(result.report.exit_metrics[:half], result.report.exit_metrics[half:], strict=True):
        assert row_before.accuracy == row_after.accuracy


def test_a_round_whose_loss_is_not_finite_is_refused_and_the_old_exits_stay(toy_network, user, split, tmp_path):
    store = ExitStore(tmp_path)
    personalise(toy_network, user, split, SETTINGS, store=store)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    diverging = dataclasses.replace(SETTINGS, learning_rate=3e38)
    with pytest.raises(NonFiniteLossError, match="learning rate"):
        personalise(toy_network, user, split, diverging, store=store, round_number=2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_next_round_starts_from_the_stored_exits(toy_network, user, split, tmp_path):
    store = ExitStore(tmp_path)
    first = personalise(toy_network, user, split, SETTINGS, store=store)
    # so small a step changes nothing that accuracy could show: the exits are those of the first round
    standing = dataclasses.replace(SETTINGS, learning_rate=1e-12, epochs=1)
    second = personalise(toy_network, user, split, standing, store=store, round_number=2)
    half = len(first.report.exit_metrics) // 2
    assert [e.accuracy for e in second.report.exit_metrics[:half]] == [
        e.accuracy for e in first.report.exit_metrics[:half]
    ]
    weights = [k for k in first.exit_weights if k.endswith("classifier.weight")]
    assert all(np.allclose(first.exit_weights[k], second.exit_weights[k], atol=1e-6) for k in weights)
    assert store.load(toy_network.backbone_fingerprint, toy_network.exit_state(), user.client_id).round == 2


def test_learning_from_labels_without_labels_is_refused(toy_network, user):
    split = split_samples(user, SplitSettings(labels=0.0), seed=0)
    with pytest.raises(LabelsRequiredError, match="no labelled training sample"):
        personalise(toy_network, user, split, SETTINGS)


def test_alpha_and_gamma_exclude_each_other():
    with pytest.raises(MultiExitError, match="exclude each other"):
        LossWeights(alpha=1.0, gamma=1.0)


def test_mean_macs_are_what_the_exits_and_the_heads_in_use_cost(toy_network, user, split):
    result = personalise(toy_network, user, split, SETTINGS)
    rows = result.report.exit_metrics[toy_network.num_exits + 1 :]
    used = [*result.policy.exits_in_use, toy_network.num_exits]
    costs = dict(zip(used, toy_network.costs.leaving_macs(result.policy.exits_in_use), strict=True))
    assert result.report.mean_macs == pytest.approx(sum(r.exit_rate * costs[r.exit] for r in rows if r.exit in costs))
    assert all(r.exit_rate == 0 for r in rows if r.exit not in costs)
    assert result.report.original_macs == toy_network.costs.original_macs


def test_a_federated_round_starts_from_the_merged_exits_and_the_guard_from_the_users_own(
    toy_network, user, split, tmp_path
):
    store = ExitStore(tmp_path)
    first = personalise(toy_network, user, split, SETTINGS, store=store)
    # merged exits that know nothing, and a step too small to learn anything from them
    merged = {k: v * 0 if v.is_floating_point() else v for k, v in toy_network.exit_state().items()}
    standing = dataclasses.replace(SETTINGS, learning_rate=1e-12, epochs=1)
    second = personalise(
        toy_network, user, split, standing, store=store, round_number=2, global_exit_weights=merged, run="A"
    )
    weights = [k for k in first.exit_weights if k.endswith("classifier.weight")]
    assert all(np.allclose(second.trained[k], merged[k], atol=1e-6) for k in weights)
    assert second.report.rolled_back_exits == (0, 1)
    assert all(np.array_equal(second.exit_weights[k], first.exit_weights[k]) for k in first.exit_weights)
    before = [e.accuracy for e in second.report.exit_metrics if e.stage == "before"]
    assert max(before[:2]) < min(e.accuracy for e in first.report.exit_metrics if e.stage == "before")


def test_what_training_made_worse_than_the_merged_exits_is_named(toy_network, user, split):
    ruinous = dataclasses.replace(SETTINGS, learning_rate=30.0, epochs=1)
    start = toy_network.exit_state()
    result = personalise(toy_network, user, split, ruinous, global_exit_weights=start)
    assert result.worse == (0, 1)
    assert all(np.array_equal(result.exit_weights[k], start[k]) for k in start)
    assert not all(np.array_equal(result.trained[k], start[k]) for k in start)


def test_samples_that_do_not_fit_the_network_are_refused_in_one_sentence(toy_network, user):
    for samples, said in (
        (dataclasses.replace(user, labels=user.labels + 2), "user f0001_01 has the label 5, and the network 4 classes"),
        (dataclasses.replace(user, images=user.images[..., :8, :8]), "1x8x8 px, and the network takes 1x16x16"),
    ):
        with pytest.raises(ClientSettingsError) as caught:
            personalise(toy_network, samples)
        assert said in str(caught.value)


def test_a_cnn_of_ones_own_is_cut_for_the_users_images_and_comes_back_with_the_personal_exits(user):
    torch.manual_seed(0)
    model = OwnCNN(4, user.images.shape[1]).eval()
    result = personalise(model, user, seed=1)
    assert result.network.num_exits == 3  # it has no fourth place
    again = personalise(result.network, user, split_samples(user, SplitSettings(), seed=1), seed=1)
    assert timeless(again.report) == timeless(result.report)
    personal = result.personal_network()
    assert all(np.array_equal(result.exit_weights[k], weights) for k, weights in personal.exit_state().items())
    images = to_float(user.images[:4])
    with torch.no_grad():
        torch.testing.assert_close(personal(images)[-1], model(images))


def test_each_step_that_may_take_long_is_told(toy_network, user):
    told = []
    personalise(toy_network, user, settings=SETTINGS, tell=told.append)
    assert [step.split()[0] for step in told] == ["computing", "training", "choosing"]
    assert "120 images of f0001_01" in told[0]
    assert "10 epochs" in told[1]
