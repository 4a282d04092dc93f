import copy
import dataclasses

import numpy as np
import pytest
import torch

from persephonee.clients.errors import ClientError
from persephonee.clients.personalisation.feature_cache import embed
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.clients.personalisation.training import linear_fit
from persephonee.clients.personalisation.training.fast_training import classify, fit_classifiers
from persephonee.clients.personalisation.training.linear_fit import solve
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.losses import personalisation_loss
from persephonee.multi_exit.settings import LossWeights

SAMPLES, WIDTH, CLASSES = 20, 12, 4
FAST = PersonalisationSettings(schedule="fast")


def draw_problem(labelled=True):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(SAMPLES, WIDTH, generator=generator)
    start = torch.randn(CLASSES, WIDTH, generator=generator) / 4
    teacher = torch.randn(SAMPLES, CLASSES, generator=generator)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    return rows, start, teacher, labels if labelled else torch.full_like(labels, -1)


@pytest.mark.parametrize(
    "weights",
    [
        LossWeights(alpha=1.0),
        LossWeights(beta=1.0, temperature=2.0),
        LossWeights(gamma=0.5),
        LossWeights(alpha=1, beta=2),
    ],
)
def test_many_steps_reach_the_minimum_that_lbfgs_finds(weights, monkeypatch):
    monkeypatch.setattr(linear_fit, "STEPS", 300)
    rows, start, teacher, labels = (t.double() if t.is_floating_point() else t for t in draw_problem())
    pull = linear_fit.PULL * float(rows.square().sum(dim=1).mean())
    found = solve(torch, (rows @ rows.T)[None], (rows @ start.T)[None], teacher[None], labels[None], weights)[0]
    ours = start + found.T @ rows

    def objective(matrix):
        loss = personalisation_loss(rows @ matrix.T, teacher, labels, weights)
        return loss * SAMPLES + pull / 2 * (matrix - start).square().sum()

    theirs = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([theirs], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = objective(theirs)
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-3, rtol=1e-3)


def test_rows_of_zeros_are_no_samples():
    rows, start, teacher, labels = draw_problem()
    gram, logits = rows @ rows.T, rows @ start.T
    alone = solve(torch, gram[None], logits[None], teacher[None], labels[None], LossWeights(alpha=1.0, beta=1.0))[0]
    pad = torch.nn.functional.pad
    padded = solve(
        torch,
        pad(gram, (0, 3, 0, 3))[None],
        pad(logits, (0, 0, 0, 3))[None],
        pad(teacher, (0, 0, 0, 3))[None],
        pad(labels, (0, 3), value=-1)[None],
        LossWeights(alpha=1.0, beta=1.0),
    )[0]
    torch.testing.assert_close(padded[:SAMPLES].T @ rows, alone.T @ rows, atol=1e-4, rtol=1e-4)
    assert not padded[SAMPLES:].any()


@pytest.mark.parametrize("head", ["msdnet", "pooled"])
def test_classifiers_on_embeddings_answer_as_the_heads_do(head):
    network = build_network("squeezenet1_1", num_exits=2, num_classes=CLASSES, input_size=48, head=head)
    images = torch.randint(0, 256, (5, 1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = compute_features(network.freeze_backbone(), images)
    heads = copy.deepcopy(network.heads).eval()
    embedded = embed(heads, features)
    labels = torch.tensor([0, 1, 2, 3, 0])
    fit_classifiers(heads, embedded, features.last_logits, labels, LossWeights(alpha=1.0))
    with torch.no_grad():
        expected = torch.stack([one(maps) for one, maps in zip(heads, features.maps, strict=True)])
    torch.testing.assert_close(classify(heads, embedded), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("labels", [1.0, 0.0])
def test_the_fast_schedule_is_as_accurate_as_the_papers(toy_network, user, labels):
    split = split_samples(user, SplitSettings(labels=labels), seed=0)
    weights = loss_weights("auto", labels)
    paper = PersonalisationSettings(learning_rate=0.05, weights=weights)

    def accuracies(settings):
        return torch.tensor(
            [e.accuracy for e in personalise(toy_network, user, split, settings).report.exit_metrics[3:5]]
        )

    assert accuracies(dataclasses.replace(FAST, weights=weights)).mean() >= accuracies(paper).mean() - 0.03


def test_the_fast_schedule_moves_the_classifiers_alone(toy_network, user, split):
    before = toy_network.exit_state()
    result = personalise(toy_network, user, split, FAST)
    moved = {name for name in before if not np.array_equal(before[name], result.trained[name])}
    assert moved == {f"heads.{i}.classifier.{part}" for i in range(2) for part in ("weight", "bias")}


def test_fedprox_has_no_place_in_the_fast_schedule():
    with pytest.raises(ClientError, match="fast schedule"):
        PersonalisationSettings(schedule="fast", proximal_mu=0.1)
    with pytest.raises(ClientError, match="paper or fast"):
        PersonalisationSettings(schedule="slow")
