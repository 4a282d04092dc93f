import numpy as np
import pytest
import torch

from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.guard import worse_exits

K = 3


def outputs(early, last_logits):
    """Return what an early exit that answers these classes and a last exit with these logits say."""
    sure = 5.0 * torch.nn.functional.one_hot(torch.tensor(early), K).float()
    return ExitOutputs.of(torch.stack([sure, last_logits]))


def probabilities(last_logits):
    return torch.softmax(last_logits.double(), dim=1).numpy()


def unlabelled(count):
    return torch.full((count,), -1)


def test_an_exit_that_corrects_an_unsure_last_exit_is_not_put_back():
    # the last exit prefers class 0 to class 1 by 51 to 49, so that either answer is as good
    last = torch.tensor([[0.51, 0.49, 1e-9]]).log().repeat(40, 1)
    before, after = outputs([0] * 40, last), outputs([1] * 20 + [0] * 20, last)
    assert (after.predictions[0] != after.predictions[1]).mean() == 0.5
    assert worse_exits(after, before, unlabelled(40), probabilities(last)) == ()


def test_an_exit_that_contradicts_a_sure_last_exit_is_put_back():
    last = torch.tensor([[0.98, 0.01, 0.01]]).log().repeat(40, 1)
    before, after = outputs([0] * 40, last), outputs([1] * 40, last)
    assert worse_exits(after, before, unlabelled(40), probabilities(last)) == (0,)


@pytest.mark.parametrize(("lost", "won", "is_worse"), [(8, 1, True), (5, 4, False), (1, 0, False), (0, 5, False)])
def test_with_labels_only_a_significant_loss_counts(lost, won, is_worse):
    truth = torch.zeros(60, dtype=torch.int64)
    before = [0] * lost + [1] * won + [0] * (60 - lost - won)
    after = [1] * lost + [0] * won + [0] * (60 - lost - won)
    last = torch.zeros(60, K)
    changes = np.r_[np.full(lost, -1.0), np.full(won, 1.0), np.zeros(60 - lost - won)]
    z = changes.mean() / (changes.std() / np.sqrt(60))
    assert (z < -1.645) == is_worse
    found = worse_exits(outputs(after, last), outputs(before, last), truth, probabilities(last))
    assert found == ((0,) if is_worse else ())
