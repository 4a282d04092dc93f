"""On what a test computes: the same test on the CPU and, where there is one, on a GPU."""

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="PyTorch finds no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_gpu])]
"""Parameters of a test that takes the name of a device; `pytest -m cuda` runs those on a GPU alone."""
