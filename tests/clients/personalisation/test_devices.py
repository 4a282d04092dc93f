"""A round on the processor and on a GPU: one code path, and results that are on the CPU."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from persephonee.clients.inference.inference_engine import InferenceEngine
from persephonee.clients.personalisation.evaluation import evaluate_exits
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.settings import ComputeSettings, LossWeights
from tests.devices import DEVICES

WEIGHTS = [LossWeights(alpha=1.0), LossWeights(beta=1.0, temperature=2.0), LossWeights(alpha=0.5, beta=0.5)]


def moved(network, device):
    return copy.deepcopy(network).to(ComputeSettings(device=device).torch_device())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", ["paper", "fast"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_round_gives_on_each_device_what_it_gives_on_the_processor(
    toy_network, user, split, tmp_path, device, schedule, weights
):
    settings = PersonalisationSettings(schedule=schedule, weights=weights, epochs=2)
    network = moved(toy_network, device)
    store = ExitStore(tmp_path)
    done = personalise(network, user, split, settings, store=store)
    assert {type(array) for array in (*done.exit_weights.values(), *done.trained.values())} == {np.ndarray}
    assert next(network.parameters()).device.type == device
    expected = personalise(toy_network, user, split, settings)
    for name, tensor in expected.trained.items():
        np.testing.assert_allclose(done.trained[name], tensor, atol=2e-3, rtol=1e-2, err_msg=name)
    assert done.report.accuracy_after == pytest.approx(expected.report.accuracy_after, abs=2.5 / len(split.test))
    # what one kind of device stored, the other goes on with
    again = personalise(toy_network, user, split, settings, store=store, round_number=2)
    assert again.report.round == 2


@pytest.mark.parametrize("device", DEVICES)
def test_a_round_repeats_bit_for_bit_on_one_kind_of_device(toy_network, user, split, device):
    settings = PersonalisationSettings(epochs=2)
    one, two = (personalise(moved(toy_network, device), user, split, settings) for _ in range(2))
    assert all(np.array_equal(tensor, two.exit_weights[name]) for name, tensor in one.exit_weights.items())
    assert replace(one.report, seconds_personalise=0.0) == replace(two.report, seconds_personalise=0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{"cost": "latency"}, {"memory_budget": "20MB"}])
def test_a_round_within_a_budget_or_with_latencies_works_on_each_device(toy_network, user, split, device, options):
    settings = PersonalisationSettings(epochs=1, **options)
    done = personalise(moved(toy_network, device), user, split, settings)
    assert (done.profile is not None) == ("cost" in options)
    assert done.report.num_test == len(split.test)


@pytest.mark.parametrize("device", DEVICES)
def test_the_last_exit_stays_bit_identical_on_each_device(toy_network, user, split, device):
    network = moved(toy_network, device).eval()
    images = to_float(user.images).to(next(network.parameters()).device)
    with torch.no_grad():
        before = network(images)[-1]
    personalise(network, user, split, PersonalisationSettings(epochs=1))
    with torch.no_grad():
        assert torch.equal(network(images)[-1], before)


@pytest.mark.parametrize("device", DEVICES)
def test_an_engine_answers_on_each_device_as_on_the_processor(toy_network, user, device):
    policy = ExitPolicy(threshold=0.8, exits_in_use=(0, 1), num_exits=2)
    images = user.images
    ours, theirs = (InferenceEngine(moved(toy_network, d), policy) for d in (device, "cpu"))
    assert np.mean(ours.infer(images).labels == theirs.infer(images).labels) > 0.98
    np.testing.assert_allclose(ours.explore(images).logits, theirs.explore(images).logits, atol=1e-3)
    one = ours.infer(images[:1])
    assert one.labels.tolist() == theirs.infer(images[:1]).labels.tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_exits_are_measured_on_each_device(toy_network, user, device):
    network = moved(toy_network, device)
    rows = evaluate_exits(network, network.heads, user.images, user.labels)
    assert len(rows) == 3
    assert all(tensor.device.type == "cpu" for tensor in network.exit_state().values())
