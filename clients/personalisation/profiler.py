"""The profiler: what each exit costs and is worth on this very device, after exit training (Sec. 3.3).

Latencies are wall times in ms at batch 1, taken one run at a time in the course of full passes, so that a stage finds
the caches as it does in use. `Profile.leaving_ms` takes the place of MACs in the calibration.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.features import runs_on_graphs
from persephonee.multi_exit.atomic_files import write_json_atomically
from persephonee.multi_exit.exit_weights import ExitWeights, classifiers_of, load_exit_weights
from persephonee.multi_exit.settings import UNLABELLED

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from persephonee.clients.personalisation.features import Network
    from persephonee.multi_exit.graphs.network import GraphNetwork
    from persephonee.multi_exit.network import MultiExitNetwork

FORMAT = 1
PROFILE_FILE = "profile.json"
WARM_UP_RUNS = 5
MIN_TIMED_RUNS = 30
"""Fewer give no 95th percentile; a small calibration set is gone through several times."""


@dataclass(frozen=True, kw_only=True)
class ExitProfile:
    """One exit on this device.

    Attributes:
        exit: number of the exit, from 0; M is the last exit.
        stage_ms: median time of the stage that ends here.
        head_ms: median time of the exit's head and of its confidence; 0 for the last exit.
        latency_ms: median time of an image that leaves here, when no other exit is in use.
        latency_p95_ms: 95th percentile of the same.
        confidence: mean top-1 softmax, in [0, 1].
        accuracy: in [0, 1], against the label where there is one, else against the last exit's answer.
    """

    exit: int
    stage_ms: float
    head_ms: float
    latency_ms: float
    latency_p95_ms: float
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All exits on this device, and how they were measured.

    Attributes:
        exits: M+1 rows in the order of the exits.
        num_samples: calibration samples that were looked at.
        labelled: fraction of them with a label, in [0, 1].
        timed_runs: runs of the network behind each time, at batch 1.
        warm_up_runs: runs before them, not timed.
        threads: of PyTorch, or of a graph.
        peak_memory_bytes: the most that the process has had resident since it began.
    """

    exits: tuple[ExitProfile, ...]
    num_samples: int
    labelled: float
    timed_runs: int
    warm_up_runs: int
    threads: int
    peak_memory_bytes: int

    def leaving_ms(self, kept: Sequence[int]) -> tuple[float, ...]:
        """Return what a sample costs that leaves at each of the `kept` exits, and then at the last one.

        A sample pays the stages up to its exit and the heads of all kept exits on the way, its own included, as in
        `CostTable.leaving_macs`.

        Args:
            kept: numbers of the early exits in use, increasing; without the last exit.
        """
        stages = np.cumsum([row.stage_ms for row in self.exits])
        used = [*kept, len(self.exits) - 1]
        heads = np.cumsum([self.exits[exit].head_ms for exit in used])
        return tuple((stages[used] + heads).tolist())


def profile_exits(
    network: "Network",
    exits: "ExitWeights | nn.ModuleList",
    images: "NDArray[np.uint8] | Tensor",
    labels: "NDArray[np.int64] | Tensor",
    *,
    max_samples: int = 100,
) -> Profile:
    """Run the network and all exits over the calibration set once, an image at a time, and measure.

    Args:
        network: gives the stages; put into eval() here.
        exits: weights of the M exits to measure, such as those that a round has just trained, or heads of PyTorch.
        images: calibration samples, uint8 [N, C, H, W], N >= 1.
        labels: their classes, int64 [N], -1 for unlabelled.
        max_samples: bounds the cost; of more samples, that many are taken evenly.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if len(images) > max_samples:
        chosen = np.linspace(0, len(images) - 1, max_samples).astype(np.int64)
        images, labels = images[chosen], labels[chosen]
    run, threads = _runner(network, exits)
    count, floats = len(images), images.astype(np.float32) / np.float32(255)
    for i in range(WARM_UP_RUNS):
        run(floats[i % count, None])
    runs = [run(floats[i % count, None]) for i in range(max(count, MIN_TIMED_RUNS))]
    return Profile(
        exits=_rows(runs, labels),
        num_samples=count,
        labelled=float((labels != UNLABELLED).mean()),
        timed_runs=len(runs),
        warm_up_runs=WARM_UP_RUNS,
        threads=threads,
        peak_memory_bytes=peak_memory_bytes(),
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """One image: times in seconds, the answers and the confidences of the M+1 exits."""

    stages: list[float]
    heads: list[float]
    labels: list[int]
    confidences: list[float]


def _runner(
    network: "Network", exits: "ExitWeights | nn.ModuleList"
) -> "tuple[Callable[[NDArray[np.float32]], _Run], int]":
    """Return what runs an image [1, C, H, W] in [0, 1], and how many threads it uses."""
    if runs_on_graphs(network):
        return partial(_run_graphs, network, classifiers_of(cast(ExitWeights, exits))), network.threads
    import copy

    import torch

    network.eval()
    heads = copy.deepcopy(network.heads)
    if isinstance(exits, torch.nn.ModuleList):
        heads = exits
    else:
        load_exit_weights(heads, exits)
    return partial(_run_torch, network, heads.eval(), next(network.parameters()).device), torch.get_num_threads()


def _run_torch(
    network: "MultiExitNetwork", heads: "nn.ModuleList", device: "torch.device", image: NDArray[np.float32]
) -> _Run:
    import torch

    # a clock that waits for a GPU; this import takes PyTorch's build tools along
    from torch.utils.benchmark import timer

    with torch.inference_mode():
        run, features = _Run([], [], [], []), torch.from_numpy(image).to(device)
        for exit, stage in enumerate(network.stages):
            begin = timer()
            features = stage(features)
            between = timer()
            logits = heads[exit](features) if exit < len(heads) else features
            confidence, label = torch.softmax(logits, dim=1, dtype=torch.float64).max(dim=1)
            end = timer()
            run.stages.append(between - begin)
            run.heads.append(end - between if exit < len(heads) else 0.0)
            run.labels.append(int(label))
            run.confidences.append(float(confidence))
    return run


def _run_graphs(
    network: "GraphNetwork", classifiers: tuple[NDArray[np.float32], ...], image: NDArray[np.float32]
) -> _Run:
    run, features = _Run([], [], [], []), image
    for exit in range(network.num_exits + 1):
        begin = time.perf_counter()
        if exit < network.num_exits:
            passed = network.pass_stage(exit, features)
            between = time.perf_counter()
            # a stage's graph ends with its exit: what both take together, less what the stage takes alone
            _, embedding = network.run_stage(exit, features)
            logits = embedding @ classifiers[exit][:, :-1].T + classifiers[exit][:, -1]
        else:
            passed = logits = network.run_last(features)
            between = time.perf_counter()
        precise = logits[0].astype(np.float64)
        confidence = 1 / np.exp(precise - precise.max()).sum()
        end = time.perf_counter()
        stage = between - begin
        run.stages.append(stage)
        run.heads.append(max(end - between - stage, 0.0) if exit < network.num_exits else 0.0)
        run.labels.append(int(precise.argmax()))
        run.confidences.append(float(confidence))
        features = passed
    return run


def _rows(runs: list[_Run], labels: NDArray[np.int64]) -> tuple[ExitProfile, ...]:
    stages, heads = np.array([run.stages for run in runs]), np.array([run.heads for run in runs])
    leaving = stages.cumsum(axis=1) + heads
    # the runs after the first pass are repetitions
    predictions = np.array([run.labels for run in runs[: len(labels)]])
    confidences = np.array([run.confidences for run in runs[: len(labels)]])
    reference = np.where(labels == UNLABELLED, predictions[:, -1], labels)
    return tuple(
        ExitProfile(
            exit=exit,
            stage_ms=_median_ms(stages[:, exit]),
            head_ms=_median_ms(heads[:, exit]) if exit < stages.shape[1] - 1 else 0.0,
            latency_ms=_median_ms(leaving[:, exit]),
            latency_p95_ms=1000 * float(np.quantile(leaving[:, exit], 0.95)),
            confidence=float(confidences[:, exit].mean()),
            accuracy=float((predictions[:, exit] == reference).mean()),
        )
        for exit in range(stages.shape[1])
    )


def _median_ms(seconds: NDArray[np.float64]) -> float:
    return 1000 * float(np.median(seconds))


def peak_memory_bytes() -> int:
    """Return the most that this process has had resident since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes
    return peak if sys.platform == "darwin" else peak * 1024


def save_profile(folder: Path, profile: Profile, round_number: int) -> None:
    """Write the profile of a round into the device's store, atomically.

    Raises:
        OSError: the disk is full or not writable.
    """
    write_json_atomically(folder / PROFILE_FILE, {"format": FORMAT, "round": round_number, "profile": asdict(profile)})
