import numpy as np
import pytest
import torch

from persephonee.multi_exit.building import build_network
from persephonee.server.training.exit_measurement import calibration_error, measure_exits
from tests.tiny_cnn import NAME, SIDE, SOURCE, TinyUsers


def test_the_calibration_error_is_that_of_bins_closed_above():
    # 0.2 is the upper edge of the third of 15 bins: with 0.15 it has a mean confidence of 0.175 and is right half
    found = calibration_error(np.array([0.15, 0.2, 1.0]), np.array([True, False, True]))
    assert found == pytest.approx((2 * abs(0.175 - 0.5) + 0) / 3)


def test_each_user_counts_the_same_however_many_samples_they_have():
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    partitions = TinyUsers(users=4)
    partitions.counts = (4, 4, 4, 100)
    network.eval()
    own = []
    for index in range(4):
        samples = partitions.load_partition(index)
        with torch.no_grad():
            answers = network(torch.as_tensor(samples.images) / 255)[0].argmax(dim=1).numpy()
        own.append(float((answers == samples.labels).mean()))
    found = measure_exits(network, partitions, partitions.client_ids)
    assert (found["users"], found["samples"], len(found["exits"])) == (4, 112, 3)
    accuracy = found["exits"][0]["accuracy"]
    assert accuracy["mean"] == pytest.approx(np.mean(own))
    assert min(own) <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= max(own)


def test_the_interval_of_a_single_user_is_over_their_samples():
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    accuracy = measure_exits(network, TinyUsers(users=1, samples=40), ["u00"])["exits"][-1]["accuracy"]
    half = 1.96 * (accuracy["mean"] * (1 - accuracy["mean"]) / 40) ** 0.5
    assert accuracy["high"] - accuracy["low"] == pytest.approx(2 * half, abs=0.06)
