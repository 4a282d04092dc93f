"""Whether a machine can be a device of a federation: Python, architecture, memory, disk, runtimes, Flower."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from persephonee.fl_app.deployment.findings import Finding, ok, warning, wrong

MIB = 2**20
# measured on x86-64 with SqueezeNet: SuperNode 108 MiB, SuperExec 87 MiB, ClientApp with torch 610 MiB
MIN_MEMORY_MIB, GOOD_MEMORY_MIB = 900, 1800
# without torch the ClientApp takes a fifth of that
LIGHT_MIN_MEMORY_MIB, LIGHT_GOOD_MEMORY_MIB = 400, 900
MIN_DISK_MIB, GOOD_DISK_MIB = 300, 1024
MIN_PYTHON = (3, 11)
FLOWER = ("1.41", "1.42")
"""The releases that were tried; pyproject.toml allows the same."""

_TORCH = """\
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5)
print(torch.__version__, torchvision.__version__, torch.cuda.is_available())
"""
_RUNTIME = """\
import persephonee, onnxruntime
names = (name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
print(onnxruntime.__version__, "with", ", ".join(names))
"""
_PAIR = "install torch and torchvision with one command from one place, as the README shows"


def check_machine(store: Path) -> list[Finding]:
    """Look at the machine; `store` is the folder that has to have room."""
    return [
        python_finding(sys.version_info[:3]),
        bits_finding(sys.maxsize.bit_length() + 1, platform.machine()),
        memory_finding(Path("/proc/meminfo"), has_torch()),
        disk_finding(store),
        runtime_finding(),
        *([torch_finding()] if has_torch() else []),
        flower_finding(),
    ]


def python_finding(found: tuple[int, ...]) -> Finding:
    """Judge a version of Python."""
    text = ".".join(map(str, found))
    if found < MIN_PYTHON:
        return wrong("Python", text, "install Python 3.11 or newer, and make the environment anew with it")
    return ok("Python", text)


def bits_finding(bits: int, machine: str) -> Finding:
    """Judge the word size of this Python; a 64-bit kernel may carry a 32-bit system."""
    text = f"{bits}-bit Python on {machine}"
    if bits < 64:
        return wrong("64-bit", text, "install a 64-bit system: torch and Flower's dependencies have no 32-bit builds")
    return ok("64-bit", text)


def has_torch() -> bool:
    """Return whether PyTorch is installed; a device without it runs the graphs that models carry."""
    return importlib.util.find_spec("torch") is not None


def runtime_finding() -> Finding:
    """Load ONNX Runtime, in a process of its own as torch."""
    done = subprocess.run([sys.executable, "-c", _RUNTIME], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ends Python with signal {-done.returncode}"])[-1]
        return wrong("ONNX Runtime", last[:160], "take a build for this processor: pip install onnxruntime")
    beside = "" if has_torch() else "; no torch: models need their graphs, and runs the fast schedule"
    return ok("ONNX Runtime", done.stdout.strip() + beside)


def memory_finding(meminfo: Path, with_torch: bool = True) -> Finding:
    """Judge memory and swap, as /proc/meminfo tells them, for a device with or without PyTorch."""
    least, good = (MIN_MEMORY_MIB, GOOD_MEMORY_MIB) if with_torch else (LIGHT_MIN_MEMORY_MIB, LIGHT_GOOD_MEMORY_MIB)
    try:
        lines = (line.split() for line in meminfo.read_text().splitlines())
        kib = {line[0].rstrip(":"): int(line[1]) for line in lines}
        total, free = kib["MemTotal"] // 1024, (kib["MemAvailable"] + kib.get("SwapFree", 0)) // 1024
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
        free = total
    text = f"{total} MiB, {free} MiB free with swap"
    if total < least:
        remedy = f"take a device with {least} MiB or more" + ("; 2 GB is comfortable" if with_torch else "")
        return wrong("memory", text, remedy)
    if free < least:
        return warning("memory", text, "end other programs, such as a desktop, or add swap (zram)")
    if total < good:
        return warning("memory", text, "run nothing else beside it, choose a small backbone, and add swap (zram)")
    return ok("memory", text)


def disk_finding(store: Path) -> Finding:
    """Judge the room in the store's file system, and whether it can be written."""
    place = next(folder for folder in (store, *store.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free // MIB
    text = f"{free} MiB free in {place}"
    if not os.access(place, os.W_OK | os.X_OK):
        return wrong(
            "disk", f"{place} cannot be written", "run this as the user that the unit names, or change its owner"
        )
    if free < MIN_DISK_MIB:
        return wrong("disk", text, f"make room: model, exits and features need {MIN_DISK_MIB} MiB at least")
    if free < GOOD_DISK_MIB:
        return warning("disk", text, "make room: the samples and features of a busy device grow to some 100 MiB")
    return ok("disk", text)


def torch_finding() -> Finding:
    """Load torch and torchvision in a process of their own: a build for another processor would end this one."""
    try:
        done = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return warning(
            "torch", "does not load within 5 minutes", "look at the device's storage and load, and try again"
        )
    if done.returncode == 0:
        torch, torchvision, cuda = done.stdout.split()[-3:]
        return ok("torch", f"{torch} with torchvision {torchvision}, {'CUDA' if cuda == 'True' else 'CPU'}")
    if done.returncode < 0:
        remedy = "take a build for this processor; the wheels of PyTorch's own index are for common ones"
        return wrong("torch", f"ends Python with signal {-done.returncode}", remedy)
    last = (done.stderr.strip().splitlines() or ["it does not load"])[-1]
    return wrong("torch", last[:160], _PAIR)


def flower_finding() -> Finding:
    """Judge the version of Flower."""
    try:
        found = version("flwr")
    except PackageNotFoundError:
        return wrong("Flower", "not installed", 'install it with pip install "persephonee[node]"')
    if found.rsplit(".", 1)[0] not in FLOWER:
        return wrong(
            "Flower", found, f'install {FLOWER[-1]} with pip install "persephonee[flower]"; the server has it too'
        )
    return ok("Flower", found)
