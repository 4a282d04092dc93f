import math

import pytest
import torch

from persephonee.multi_exit.errors import NoGPUError, SettingsError
from persephonee.multi_exit.settings import ComputeSettings
from tests.devices import needs_gpu


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_a_gpu_everything_is_computed_on_the_processor(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ComputeSettings(device=device).torch_device() == torch.device("cpu")


def test_a_gpu_that_is_asked_for_and_absent_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoGPUError, match=r"device=cuda asks for a GPU and PyTorch finds none .* take device=cpu"):
        ComputeSettings(device="cuda").torch_device()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_is_there_computes_repeatably_and_in_whole_float32(monkeypatch, device):
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    try:
        assert ComputeSettings(device=device).torch_device() == torch.device("cuda")
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(("name", "value"), [("device", "tpu"), ("gpu_fraction", 0.0), ("gpu_fraction", math.nan)])
def test_compute_settings_out_of_their_range_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=name):
        ComputeSettings(**{name: value})


@pytest.mark.cuda
@needs_gpu
def test_a_convolution_on_a_gpu_is_that_of_the_processor_within_the_rounding_of_float32():
    device = ComputeSettings(device="cuda").torch_device()
    layer = torch.nn.Conv2d(64, 64, 3)
    images = torch.rand(2, 64, 16, 16)
    expected = layer(images)
    torch.testing.assert_close(layer.to(device)(images.to(device)).cpu(), expected, atol=1e-5, rtol=1e-5)
