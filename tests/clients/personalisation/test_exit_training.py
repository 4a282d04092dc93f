import numpy as np
import pytest
import torch

from persephonee.clients.errors import ClientError
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.training.exit_training import batches
from persephonee.multi_exit.building import build_network


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        (227, 32, [29] * 3 + [28] * 5),
        (33, 32, [17, 16]),
        (32, 32, [32]),
        (2, 32, [2]),
        # no batch of one
        (3, 2, [3]),
        (5, 2, [3, 2]),
    ],
)
def test_batches_of_an_epoch_differ_by_one_sample_at_most_and_leave_none_out(count, size, sizes):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    divided = batches(order, size)
    assert [len(batch) for batch in divided] == sizes
    assert torch.equal(torch.cat(divided), order)


@pytest.mark.parametrize(("statistics", "stay"), [("frozen", True), ("batch", False)])
def test_frozen_statistics_of_the_heads_stay_those_of_pretraining(toy_network, user, split, statistics, stay):
    network = build_network(
        toy_network.spec.backbone,
        num_exits=2,
        num_classes=toy_network.num_classes,
        input_size=16,
        allowed=("toy_backbones_of_the_tests",),
        head="msdnet",
        stem="stride-1",
    )
    before = network.exit_state()
    settings = PersonalisationSettings(epochs=1, head_statistics=statistics)
    trained = personalise(network, user, split, settings).trained
    names = [name for name in before if "running" in name or "num_batches" in name]
    assert names
    assert all(np.array_equal(before[name], trained[name]) is stay for name in names)
    assert not any(np.array_equal(before[name], trained[name]) for name in before if name.endswith("weight"))


def test_statistics_of_another_kind_are_refused():
    with pytest.raises(ClientError, match="head_statistics=none is out of range: expected frozen or batch"):
        PersonalisationSettings(head_statistics="none")


@pytest.mark.parametrize("most", [0.001, 0.01, 1e9])
def test_a_step_is_as_long_as_the_gradient_or_the_largest_norm(toy_network, user, split, most):
    # one batch of all samples, no momentum: each head moves by the rate times its gradient
    step = {"epochs": 1, "batch_size": 1000, "momentum": 0.0, "learning_rate": 0.5, "max_gradient_norm": most}
    settings = PersonalisationSettings(**step, use_prior=False, rule="paper")
    before = toy_network.exit_state()
    trained = personalise(toy_network, user, split, settings).trained
    for exit in range(toy_network.num_exits):
        names = [name for name in before if name.startswith(f"heads.{exit}.") and "running" not in name]
        moved = np.sqrt(sum(np.square(trained[name] - before[name].numpy()).sum() for name in names))
        if most < 1:
            assert moved == pytest.approx(0.5 * most, rel=1e-2)
        else:
            assert moved > 0.5 * 0.01
