import copy
import dataclasses

import numpy as np
import pytest

from persephonee.clients.errors import NonFiniteLossError
from persephonee.clients.personalisation.batched_personalise import BatchUser, personalise_batch
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.settings import LossWeights

# 33 training samples would leave a batch of one behind; batches of one epoch differ by a sample at most
SIZES = (60, 44, 120, 25)


def draw_user_batch(draw_user, labels=1.0):
    users = [draw_user(f"user {n}", n, seed=n) for n in SIZES]
    return [BatchUser(samples=s, split=split_samples(s, SplitSettings(labels=labels), seed=0)) for s in users]


@pytest.fixture(params=["pooled", "msdnet"])
def network(request, toy_network):
    if request.param == "msdnet":
        other = build_network(
            toy_network.spec.backbone,
            num_exits=2,
            num_classes=toy_network.num_classes,
            input_size=16,
            allowed=("toy_backbones_of_the_tests",),
        )
        other.stages.load_state_dict(toy_network.stages.state_dict())
        return other
    return toy_network


@pytest.mark.parametrize("labels", [1.0, 0.0])
@pytest.mark.parametrize(("schedule", "statistics"), [("paper", "frozen"), ("paper", "batch"), ("fast", "frozen")])
def test_a_user_batch_gives_what_its_users_give_one_by_one(network, draw_user, schedule, statistics, labels):
    users = draw_user_batch(draw_user, labels)
    weights = LossWeights(alpha=labels, beta=1.0)
    settings = PersonalisationSettings(
        schedule=schedule, weights=weights, epochs=2, batch_size=16, head_statistics=statistics
    )
    together = personalise_batch(network, users, settings, seed=1)
    for user, ours in zip(users, together, strict=True):
        alone = personalise(network, user.samples, user.split, settings, seed=1)
        for name, tensor in alone.trained.items():
            np.testing.assert_allclose(ours.trained[name], tensor, atol=2e-4, rtol=1e-3, err_msg=name)
        assert [e.accuracy for e in ours.report.exit_metrics] == pytest.approx(
            [e.accuracy for e in alone.report.exit_metrics]
        )
        assert ours.report.rolled_back_exits == alone.report.rolled_back_exits
        assert ours.report.mean_macs == pytest.approx(alone.report.mean_macs)


def test_fedprox_holds_in_a_user_batch_too(toy_network, draw_user):
    users = draw_user_batch(draw_user)
    settings = PersonalisationSettings(epochs=2, proximal_mu=0.5)
    together = personalise_batch(toy_network, users, settings)
    alone = personalise(toy_network, users[0].samples, users[0].split, settings)
    for name, tensor in alone.trained.items():
        np.testing.assert_allclose(together[0].trained[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("schedule", ["paper", "fast"])
def test_the_next_round_starts_from_each_users_own_exits(toy_network, draw_user, tmp_path, schedule):
    settings = PersonalisationSettings(schedule=schedule, epochs=1)
    users = [
        dataclasses.replace(user, store=ExitStore(tmp_path / str(i)))
        for i, user in enumerate(draw_user_batch(draw_user))
    ]
    personalise_batch(toy_network, users, settings)
    copies = [ExitStore(tmp_path / f"copy {i}") for i in range(len(users))]
    for user, store in zip(users, copies, strict=True):
        personalise(toy_network, user.samples, user.split, settings, store=store)
    assert [len(user.store.known_parts()) for user in users] == [len(user.samples) for user in users]
    second = personalise_batch(toy_network, users[:2], settings, round_number=2)
    for user, store, ours in zip(users[:2], copies[:2], second, strict=True):
        alone = personalise(toy_network, user.samples, user.split, settings, store=store, round_number=2)
        for name, tensor in alone.exit_weights.items():
            np.testing.assert_allclose(ours.exit_weights[name], tensor, atol=5e-4, rtol=1e-2)


def test_somebodys_divergence_is_named_and_nobody_is_stored(toy_network, draw_user, tmp_path):
    user = dataclasses.replace(draw_user_batch(draw_user)[0], store=ExitStore(tmp_path))
    with pytest.raises(NonFiniteLossError, match="'user 60' diverged"):
        personalise_batch(toy_network, [user], PersonalisationSettings(learning_rate=3e38))
    assert not list(tmp_path.iterdir())


def test_the_network_is_left_as_it_was(toy_network, draw_user):
    before = copy.deepcopy(toy_network.state_dict())
    personalise_batch(toy_network, draw_user_batch(draw_user), PersonalisationSettings(epochs=1))
    assert all(np.array_equal(tensor, before[name]) for name, tensor in toy_network.state_dict().items())
