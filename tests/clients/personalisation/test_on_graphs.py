"""On a model's graphs, what a device tells and chooses beyond its report is what PyTorch gives."""

from dataclasses import replace

import numpy as np
import pytest

from persephonee.clients.personalisation.exit_shifts import class_shifts
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.features import features_of
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.risk.risk_control import pool_curves
from persephonee.clients.personalisation.risk.second_choice import choose_again
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples

FEDERATED = PersonalisationSettings(schedule="fast", rule="federated", drop_tolerance=0.3)


def three_of_four_classes(draw_user, client_id, seed):
    user = draw_user(client_id, n=240, seed=seed)
    return replace(user, images=user.images[user.labels < 3], labels=user.labels[user.labels < 3])


@pytest.mark.parametrize("labels", [1.0, 0.0])
def test_the_class_frequencies_are_those_of_pytorch(graphs, calibrated, draw_user, labels):
    user = three_of_four_classes(draw_user, "u", 5)
    split = split_samples(user, SplitSettings(labels=labels), seed=0)
    given = user.labels if labels else np.full_like(user.labels, -1)
    ours, theirs = (
        class_shifts(one, features_of(one, user.images), given, split, FEDERATED, 0, "u", 1)
        for one in (graphs, calibrated.freeze_backbone())
    )
    # the class that this user never has counts for less
    assert theirs[-1, 3] < theirs[-1, :3].min()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("labels", [1.0, 0.0])
def test_risk_curves_and_the_second_choice_of_a_policy_are_those_of_pytorch(
    graphs, calibrated, draw_user, labels, tmp_path
):
    settings = replace(FEDERATED, weights=loss_weights("auto", labels))
    stores = {name: ExitStore(tmp_path / name) for name in ("graphs", "torch")}
    curves, rounds = {"graphs": [], "torch": []}, []
    for number in range(4):
        user = three_of_four_classes(draw_user, f"u{number}", number)
        split = split_samples(user, SplitSettings(labels=labels), seed=0)
        for name, network in (("graphs", graphs), ("torch", calibrated)):
            store = stores[name] if number == 0 else None
            done = personalise(network, user, split, settings, store=store, round_number=1, run="r")
            curves[name].append(done.choice.curve)
        rounds.append((user, split))
    for ours, theirs in zip(curves["graphs"], curves["torch"], strict=True):
        assert ours.samples == theirs.samples
        # counted in tenths of a sample and in fractions of the whole network's cost, both rounded
        assert np.abs(ours.excess - theirs.excess).max() <= 1
        np.testing.assert_allclose(ours.costs, theirs.costs, atol=1)
    pool = pool_curves(curves["torch"][1:], "federated", [(settings.drop_tolerance, settings.delta)])
    assert pool.certificates
    reports = [
        choose_again(network, *rounds[0], settings, stores[name], pool, run="r", round_number=1)
        for name, network in (("graphs", graphs), ("torch", calibrated))
    ]
    policies = [
        stores[name].load(calibrated.backbone_fingerprint, calibrated.exit_state(), "u0").policy
        for name in ("graphs", "torch")
    ]
    assert policies[0] == policies[1] and policies[0].exits_in_use
    assert reports[0].rule == reports[1].rule
    assert reports[0].rule.startswith("federated")
    for name in ("accuracy_original", "accuracy_before", "accuracy_after", "mean_macs", "threshold"):
        assert getattr(reports[0], name) == pytest.approx(getattr(reports[1], name), abs=1e-4, rel=1e-4)
