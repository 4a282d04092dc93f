import math

import pytest
import torch
from torch.nn import functional

from persephonee.multi_exit.errors import SettingsError
from persephonee.multi_exit.losses import joint_loss, joint_weights, personalisation_loss, scaled_gradient
from persephonee.multi_exit.settings import LossWeights

EXIT = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
LAST = torch.tensor([[1.0, 1.5, 0.0], [0.0, -1.0, 3.0]])
LABELS = torch.tensor([0, 1])


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(x / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


def kl(teacher: list[float], student: list[float], temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_alpha_weighs_the_cross_entropy_of_the_labels():
    by_hand = -(math.log(softmax([2, 0, -1])[0]) + math.log(1 / 3)) / 2
    loss = personalisation_loss(EXIT, LAST, LABELS, LossWeights(alpha=0.7))
    assert float(loss) == pytest.approx(0.7 * by_hand, rel=1e-6)
    assert float(loss) == pytest.approx(0.7 * float(functional.cross_entropy(EXIT, LABELS)), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_beta_weighs_the_divergence_from_the_last_exit_as_a_mean_over_the_batch(temperature):
    weights = LossWeights(beta=0.3, temperature=temperature, squared_temperature=False)
    by_hand = sum(kl(t, s, temperature) for t, s in zip(LAST.tolist(), EXIT.tolist(), strict=True)) / 2
    loss = float(personalisation_loss(EXIT, LAST, None, weights))
    assert loss == pytest.approx(0.3 * by_hand, rel=1e-5)
    torch_s_own = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(EXIT / temperature, 1), torch.softmax(LAST / temperature, 1)
    )
    assert loss == pytest.approx(0.3 * float(torch_s_own), rel=1e-5)


def test_the_squared_temperature_is_a_factor_and_on_by_default():
    plain = personalisation_loss(EXIT, LAST, None, LossWeights(beta=1, temperature=3, squared_temperature=False))
    assert float(personalisation_loss(EXIT, LAST, None, LossWeights(beta=1, temperature=3))) == pytest.approx(
        9 * float(plain)
    )


def test_gamma_weighs_the_cross_entropy_of_the_last_exits_decision():
    # the last exit decides for class 1 and class 2
    by_hand = -(math.log(softmax([2, 0, -1])[1]) + math.log(1 / 3)) / 2
    loss = personalisation_loss(EXIT, LAST, None, LossWeights(gamma=2.0))
    assert float(loss) == pytest.approx(2 * by_hand, rel=1e-6)


@pytest.mark.parametrize("first", [{"alpha": 0.4}, {"gamma": 0.4}])
def test_the_terms_add_up(first):
    both = personalisation_loss(EXIT, LAST, LABELS, LossWeights(**first, beta=0.6, temperature=2))
    parts = [LossWeights(**first), LossWeights(beta=0.6, temperature=2)]
    assert float(both) == pytest.approx(sum(float(personalisation_loss(EXIT, LAST, LABELS, w)) for w in parts))


@pytest.mark.parametrize("weights", [LossWeights(alpha=1, beta=1), LossWeights(beta=1, gamma=1)])
def test_no_gradient_flows_to_the_last_exit(weights):
    exit_logits, last_logits = EXIT.clone().requires_grad_(), LAST.clone().requires_grad_()
    personalisation_loss(exit_logits, last_logits, LABELS, weights).backward()
    assert exit_logits.grad is not None
    assert last_logits.grad is None


def test_in_a_mixed_batch_every_sample_weighs_the_same():
    mixed = torch.tensor([0, -1])
    labelled = -math.log(softmax([2, 0, -1])[0])
    loss = personalisation_loss(EXIT, LAST, mixed, LossWeights(alpha=1.0))
    assert float(loss) == pytest.approx(labelled / 2, rel=1e-6)
    # the unlabelled sample still learns from the last exit
    with_beta = personalisation_loss(EXIT, LAST, mixed, LossWeights(alpha=1.0, beta=1.0))
    divergence = (kl(LAST[0].tolist(), EXIT[0].tolist(), 1) + kl(LAST[1].tolist(), EXIT[1].tolist(), 1)) / 2
    assert float(with_beta) == pytest.approx(labelled / 2 + divergence, rel=1e-5)


def test_a_batch_without_any_label_adds_nothing_to_the_supervised_term():
    exit_logits = EXIT.clone().requires_grad_()
    loss = personalisation_loss(exit_logits, LAST, torch.tensor([-1, -1]), LossWeights(alpha=1.0))
    loss.backward()
    assert loss.item() == 0
    assert exit_logits.grad.abs().sum() == 0


def test_learning_from_labels_without_labels_is_refused(one_sentence):
    with pytest.raises(SettingsError) as caught:
        personalisation_loss(EXIT, LAST, None, LossWeights(alpha=1.0))
    assert "labels" in one_sentence(caught)


@pytest.mark.parametrize(
    "weights",
    [
        {"alpha": 0.5, "gamma": 0.5},
        {"beta": -0.1},
        {"alpha": math.nan},
        {"gamma": math.inf},
        {"beta": 1, "temperature": 0},
        {"beta": 1, "temperature": math.inf},
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, one_sentence):
    with pytest.raises(SettingsError) as caught:
        LossWeights(**weights)
    assert all(name in one_sentence(caught) for name in weights if name != "beta" or len(weights) == 1)


def test_joint_weights_grow_from_one_hundredth_to_the_exits_fraction_of_macs():
    shares = (0.15, 0.45, 0.9)
    assert joint_weights(shares, 0, 100) == pytest.approx((0.01, 0.01, 0.01))
    assert joint_weights(shares, 50, 100) == pytest.approx((0.085, 0.235, 0.46))
    assert joint_weights(shares, 100, 100) == pytest.approx(shares)
    assert joint_weights((0.005,), 0, 100) == pytest.approx((0.005,))


def test_joint_loss_is_kayas_on_numbers_worked_out_by_hand():
    even = torch.zeros(2, 4)  # cross-entropy ln 4 whatever the label
    sure = torch.tensor([[math.log(7.0), 0, 0, 0]] * 2)  # class 0 with 7/10
    loss = joint_loss([even, even, sure], torch.tensor([0, 0]), (0.15, 0.45), 50, 100)
    assert float(loss) == pytest.approx(0.085 * math.log(4) + 0.235 * math.log(4) - math.log(0.7), rel=1e-6)


def test_scaled_gradients_give_the_backbone_kayas_gradient_and_each_head_its_whole_own():
    torch.manual_seed(0)
    backbone, head, last = (torch.nn.Linear(3, 3) for _ in range(3))
    images, labels, share = torch.rand(5, 3), torch.tensor([0, 1, 2, 0, 1]), 0.15
    (weight,) = joint_weights((share,), 2, 4)
    maps = backbone(images)
    joint_loss([head(maps), last(maps)], labels, (share,), 2, 4).backward()
    kaya = [[p.grad.clone() for p in module.parameters()] for module in (backbone, head, last)]
    for module in (backbone, head, last):
        module.zero_grad()
    maps = backbone(images)
    losses = [functional.cross_entropy(head(scaled_gradient(maps, weight)), labels)]
    losses.append(functional.cross_entropy(last(maps), labels))
    sum(losses).backward()
    for module, gradients, factor in zip((backbone, head, last), kaya, (1, 1 / weight, 1), strict=True):
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, factor * gradient)


def test_the_weight_of_an_exit_reaches_its_fraction_of_macs_in_the_last_epoch_and_not_before():
    shares, epochs = (0.123, 0.444, 0.835), 6
    assert joint_weights(shares, epochs, epochs) == pytest.approx(shares)
    assert all(w < s for w, s in zip(joint_weights(shares, epochs - 1, epochs), shares, strict=True))
