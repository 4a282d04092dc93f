import numpy as np
import pytest

from persephonee.clients.errors import ClientError
from persephonee.clients.personalisation.policy import ExitPolicy


def test_a_sample_takes_the_first_exit_above_the_threshold():
    confidences = np.array([[0.6, 0.5, 0.1], [0.9, 0.9, 0.2], [0.99, 0.99, 0.3], [0.4, 0.4, 0.4]])
    policy = ExitPolicy(threshold=0.5, exits_in_use=(0, 1, 2), num_exits=3)
    # the second sample's 0.5 is not above 0.5; the third takes the last exit
    assert policy.exit_of(confidences).tolist() == [0, 1, 3]


def test_the_last_exit_answers_and_not_the_most_confident_one():
    confidences = np.array([[0.49], [0.48], [0.1]])
    assert ExitPolicy(threshold=0.5, exits_in_use=(0, 1), num_exits=2).exit_of(confidences).tolist() == [2]


def test_an_exit_that_is_not_in_use_answers_nothing():
    confidences = np.array([[0.99], [0.99], [0.99]])
    assert ExitPolicy(threshold=0.5, exits_in_use=(1,), num_exits=2).exit_of(confidences).tolist() == [1]
    assert ExitPolicy(threshold=0.5, exits_in_use=(), num_exits=2).exit_of(confidences).tolist() == [2]


@pytest.mark.parametrize(
    ("threshold", "exits"), [(-0.1, (0,)), (1.1, (0,)), (float("nan"), (0,)), (0.5, (2,)), (0.5, (1, 0)), (0.5, (0, 0))]
)
def test_a_policy_that_cannot_be_is_refused(threshold: float, exits: tuple[int, ...]):
    with pytest.raises(ClientError, match="expected"):
        ExitPolicy(threshold=threshold, exits_in_use=exits, num_exits=2)
