import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from persephonee.clients.errors import ClientError
from persephonee.clients.personalisation.feature_plan import FeaturePlan, plan_features
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings, parse_bytes
from persephonee.multi_exit.building import build_network

MB = 10**6
EVERY = torch.arange(30)


@pytest.mark.parametrize(
    "paths",
    [
        ("file", "file"),
        ("recompute", "recompute"),
        ("memory", "recompute"),
        ("recompute", "memory"),
        ("file", "memory"),
    ],
)
def test_every_plan_gives_the_same_features(toy_network, user, paths):
    images = user.images[:30]
    whole = compute_features(toy_network.freeze_backbone(), images)
    planned = compute_features(toy_network, images, FeaturePlan(paths=paths, chunk=7))
    torch.testing.assert_close(planned.last_logits, whole.last_logits)
    # in any order, and a sample twice
    for samples in (EVERY, torch.tensor([29, 3, 3, 0])):
        for ours, theirs in zip(planned.maps, whole.maps, strict=True):
            torch.testing.assert_close(ours[samples], theirs[samples])


def test_float16_rounds_features_to_eleven_bits(toy_network, user):
    images = user.images[:30]
    whole = compute_features(toy_network.freeze_backbone(), images)
    planned = compute_features(toy_network, images, FeaturePlan(paths=("half", "half")))
    for ours, theirs in zip(planned.maps, whole.maps, strict=True):
        np.testing.assert_allclose(ours[EVERY], theirs[EVERY], rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("schedule", ["paper", "fast"])
@pytest.mark.parametrize("paths", [("file", "recompute"), ("recompute", "file")])
def test_a_round_is_the_same_whichever_plan_it_follows(toy_network, user, split, monkeypatch, schedule, paths):
    settings = PersonalisationSettings(schedule=schedule, epochs=2)
    free = personalise(toy_network, user, split, settings)
    plan = FeaturePlan(paths=paths, chunk=11)
    monkeypatch.setattr("persephonee.clients.personalisation.feature_plan.plan_features", lambda *_, **__: plan)
    bound = personalise(toy_network, user, split, dataclasses.replace(settings, memory_budget="1GB"))
    for name, tensor in free.exit_weights.items():
        np.testing.assert_allclose(bound.exit_weights[name], tensor, atol=1e-4, rtol=1e-3)
    assert [e.accuracy for e in bound.report.exit_metrics] == [e.accuracy for e in free.report.exit_metrics]


def test_less_memory_means_other_places_and_never_more_than_the_budget():
    network = build_network("resnet50", num_exits=6, num_classes=10, in_channels=3, input_size=224).freeze_backbone()
    roomy = plan_features(network, 512, 16_000 * MB)
    assert set(roomy.paths) == {"memory"}
    tight = plan_features(network, 512, 1_000 * MB)
    assert "file" in tight.paths
    assert tight.bytes <= 1_000 * MB
    rounded = [plan_features(network, 512, budget * MB, half=True) for budget in range(1_500, 4_000, 250)]
    assert any("half" in plan.paths for plan in rounded)
    assert "recompute" in plan_features(network, 512, 1_000 * MB, file=False).paths
    with pytest.raises(ClientError, match="too small"):
        plan_features(network, 512, 100 * MB)


@pytest.mark.parametrize(("text", "expected"), [("1GB", 10**9), ("1.5gb", 15 * 10**8), ("800MB", 8 * 10**8), ("7", 7)])
def test_a_budget_is_read_in_powers_of_a_thousand(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["much", "0", "-1GB", "infGB", "nan"])
def test_no_amount_is_refused(text):
    with pytest.raises(ClientError, match="no amount"):
        PersonalisationSettings(memory_budget=text)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["paper", "fast"])
def test_the_budget_holds_for_the_whole_process(schedule):
    script = Path(__file__).with_name("round_in_a_budget.py")
    done = subprocess.run(
        [sys.executable, script, schedule, "200MB"], capture_output=True, text=True, check=True, cwd=script.parents[3]
    )
    grown = int(done.stdout)
    assert 50 * MB < grown <= 200 * MB


def test_a_plan_leaves_the_network_alone(toy_network):
    before = copy.deepcopy(toy_network.state_dict())
    plan_features(toy_network, 10, 100 * MB)
    assert all(np.array_equal(tensor, before[name]) for name, tensor in toy_network.state_dict().items())
