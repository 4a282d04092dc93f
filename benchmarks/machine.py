"""The machine that a benchmark runs on: what it is, how fast it multiplies matrices, what a process has resident."""

import contextlib
import ctypes
import gc
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persephonee.clients.personalisation.profiler import peak_memory_bytes

SIDE = 2048
WARM_UP, REPEATS = 2, 7


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Return the processor, the threads and the versions that times depend on."""
    card = {"card": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return {
        "processor": _processor(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **card,
    }


def matrix_macs_per_second(dtype: torch.dtype = torch.float32, device: str = "cpu", side: int = SIDE) -> float:
    """Return how many multiply-adds a second this machine does in a product of two square matrices.

    The median of a few products after two that are not timed, with PyTorch's threads. What a plan's MACs would take at
    this rate is the limit that its time is compared with.
    """
    left = torch.rand(side, side, device=device).to(dtype)
    right = torch.rand(side, side, device=device).to(dtype)
    times = []
    for repeat in range(-WARM_UP, REPEATS):
        wait_for(device)
        begin = time.perf_counter()
        torch.mm(left, right)
        wait_for(device)
        if repeat >= 0:
            times.append(time.perf_counter() - begin)
    return side**3 / float(np.median(times))


def peak_resident_bytes(process: int | str = "self") -> int:
    """Return the most that a process has had resident since it began its program; 0 where it is gone.

    Linux says it per program; what `getrusage` says begins with the memory of the process that started this one.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return peak_memory_bytes() if process == "self" else 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Give back what is free and let the peak of this process begin anew with the rest, where Linux allows it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def wait_for(device: str) -> None:
    """Wait until a card has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
