import numpy as np
import pytest
import torch
from torch.nn import functional

from persephonee.data_partitions.samples import to_float
from persephonee.server.errors import PretrainingError
from persephonee.server.training.exit_calibration_fit import fit_calibration, fit_exit
from persephonee.server.training.pretraining import pretrain
from persephonee.server.training.pretraining_settings import PretrainSettings
from persephonee.server.training.training_samples import SampleTable, gather_samples
from tests.server.training.test_pretraining import TRAIN, USERS, VALIDATION, network


def test_the_temperature_and_the_biases_that_drew_the_labels_are_found():
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    true_bias = torch.tensor([0.6, -0.2, 0.0, -0.4], dtype=torch.float64)
    labels = torch.multinomial((logits / 2.5 + true_bias).softmax(1), 1, generator=generator)[:, 0]
    temperature, bias = fit_exit(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.05)
    # a common offset means nothing, and the pull sets it to 0
    np.testing.assert_allclose(bias, true_bias, atol=0.08)
    assert sum(bias) == pytest.approx(0, abs=1e-4)


def test_an_exit_without_a_flaw_and_a_class_without_a_sample_stay_finite():
    labels = torch.tensor([0, 1] * 20)
    temperature, bias = fit_exit(10 * functional.one_hot(labels, 3).double(), labels)
    assert 0.01 < temperature < 1
    assert max(map(abs, bias)) < 10


def test_pretraining_leaves_the_calibration_of_its_held_out_users(tmp_path):
    net = network()
    settings = PretrainSettings(epochs=2, patience=2, batch_size=32, learning_rate=0.05)
    result = pretrain(net, USERS, TRAIN, VALIDATION, settings, tmp_path / "c.safetensors")
    table = gather_samples(USERS, VALIDATION)
    assert result.calibration == net.calibration == fit_calibration(net, table)
    counts = np.bincount(table.labels, minlength=2) + 1
    np.testing.assert_allclose(result.calibration.frequencies, counts / counts.sum())
    with torch.no_grad():
        for exit, logits in enumerate(net(to_float(table.images))):
            temperature, bias = result.calibration.temperatures[exit], torch.tensor(result.calibration.biases[exit])
            after = functional.cross_entropy(logits / temperature + bias, table.labels)
            assert after <= functional.cross_entropy(logits, table.labels) + 1e-6


def test_no_sample_at_all_is_refused():
    empty = SampleTable(images=torch.zeros(0, 1, 8, 8, dtype=torch.uint8), labels=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(PretrainingError, match="no sample to calibrate"):
        fit_calibration(network(), empty)
