"""The ways to personalise that `persephonee.benchmarks.personalisation_cost.benchmark` compares; each trains on one
user's samples.

    whole    full fine-tuning: all weights of the original network, the last exit's cross-entropy
    paper    the paper's way: exits only, the frozen backbone run again in every epoch (Sec. 3.1.3)
    cached   ours with the paper's schedule: one pass through the backbone, exits trained on its features
    fast     ours with the fast schedule

All begin with uint8 images and end with trained weights; calibration and reports, the same for all, are left out.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from persephonee.benchmarks.personalisation_cost.training_macs import (
    backbone_macs,
    exits_training_macs,
    fast_macs,
    whole_training_macs,
)
from persephonee.clients.personalisation.feature_cache import FeatureCache, embed
from persephonee.clients.personalisation.feature_plan import plan_features
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.frozen_backbone import frozen_backbone
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.training.exit_training import train_exits
from persephonee.clients.personalisation.training.fast_training import fit_classifiers
from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.network import MultiExitNetwork

WARM_UP_STEPS = 1


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned.

    Attributes:
        network: the global model, its backbone frozen; a way may change any of its weights.
        exits: numbers of the early exits to train.
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        settings: the paper's schedule.
        steps: stop after this many timed steps, and scale to the schedule; None trains to the end.
        seed: determines the order of the samples.
        memory_budget: what our ways may use beyond model and images, in bytes; None keeps all features in memory.
    """

    network: MultiExitNetwork
    exits: tuple[int, ...]
    images: Tensor
    labels: Tensor
    settings: PersonalisationSettings
    steps: int | None = None
    seed: int = 0
    memory_budget: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a way took.

    Attributes:
        seconds: duration of the whole schedule; extrapolated where only `steps` were measured.
        steps: number of measured steps; 0 where the schedule ran to its end.
        passes: number of sample-passes of training.
        macs: the least arithmetic of the plan, in MACs.
        trained: exits whose accuracy the way changed, the last exit being number M; empty where it was not finished.
    """

    seconds: float
    steps: int
    passes: int
    macs: int
    trained: tuple[int, ...]


def train_whole(task: Task) -> Cost:
    """Fine-tune the whole network."""
    network = task.network
    for stage in network.stages:
        # past the freezing: `network.train()` would put the stages back into eval()
        stage.requires_grad_(True).train()
    optimiser = _sgd(network.stages.parameters(), task.settings)

    def step(batch: Tensor) -> None:
        current = to_float(task.images[batch])
        for stage in network.stages:
            current = stage(current)
        _descend(optimiser, functional.cross_entropy(current, task.labels[batch]))

    seconds, steps = _run(step, task)
    network.eval()
    passes = task.settings.epochs * len(task.labels)
    trained = () if steps else (network.num_exits,)
    return Cost(
        seconds=seconds, steps=steps, passes=passes, macs=passes * whole_training_macs(network), trained=trained
    )


def train_as_the_paper(task: Task) -> Cost:
    """Train the exits, running the backbone up to the last of them in every step."""
    network = task.network.train()
    heads = [network.heads[i] for i in task.exits]
    optimiser = _sgd([p for head in heads for p in head.parameters()], task.settings)

    def step(batch: Tensor) -> None:
        with torch.no_grad():
            maps = _maps(network.stages, to_float(task.images[batch]), task.exits)
        losses = [functional.cross_entropy(h(m), task.labels[batch]) for h, m in zip(heads, maps, strict=True)]
        _descend(optimiser, torch.stack(losses).sum())

    seconds, steps = _run(step, task)
    network.eval()
    passes = task.settings.epochs * len(task.labels)
    macs = passes * (backbone_macs(network, task.exits) + exits_training_macs(network, task.exits))
    return Cost(seconds=seconds, steps=steps, passes=passes, macs=macs, trained=() if steps else task.exits)


def train_on_cached_features(task: Task) -> Cost:
    """Compute the features once, and train the exits on them."""
    network = only_early(task.network, task.exits).eval()
    count = len(task.labels)
    # made once, with the model; its memory counts
    frozen_backbone(network)
    begin = time.perf_counter()
    features = _features(network, task)
    generator = torch.Generator().manual_seed(task.seed)
    train_exits(network.heads, features, task.labels, torch.arange(count), task.settings, generator)
    seconds, passes = time.perf_counter() - begin, task.settings.epochs * count
    macs = count * backbone_macs(task.network, task.exits) + passes * exits_training_macs(task.network, task.exits)
    return Cost(seconds=seconds, steps=0, passes=passes, macs=macs, trained=task.exits)


def train_fast(task: Task) -> Cost:
    """Compute the features and what the exits make of them once, and solve for the classifiers."""
    network = only_early(task.network, task.exits).eval()
    count = len(task.labels)
    frozen_backbone(network)
    begin = time.perf_counter()
    features = _features(network, task)
    embedded = embed(network.heads, features)
    fit_classifiers(network.heads, embedded, features.last_logits, task.labels, task.settings.weights)
    seconds = time.perf_counter() - begin
    macs = count * backbone_macs(task.network, task.exits) + fast_macs(task.network, task.exits, count)
    return Cost(seconds=seconds, steps=0, passes=count, macs=macs, trained=task.exits)


def only_early(network: MultiExitNetwork, exits: Sequence[int]) -> MultiExitNetwork:
    """Return a network that ends behind the last of these exits and shares its modules; labels replace the last exit.

    Args:
        network: gives stages and heads.
        exits: 0, 1, ... up to some exit.
    """
    last = max(exits) + 1
    end = fx.symbolic_trace(_NoAnswer(network.num_classes))
    stages = [*list(network.stages)[:last], end]
    heads = [network.heads[i] for i in exits]
    spec = replace(network.spec, cuts=network.spec.cuts[:last])
    return MultiExitNetwork(stages, heads, spec, network.costs, network.feature_shapes[:last])


class _NoAnswer(nn.Module):
    """Logits that nobody reads."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, features: Tensor) -> Tensor:
        """Return the same number for all classes, [B, K]."""
        return features.mean((1, 2, 3))[:, None].expand(-1, self.num_classes)


def _features(network: MultiExitNetwork, task: Task) -> FeatureCache:
    if task.memory_budget is None:
        return compute_features(network, task.images)
    size = task.settings.batch_size
    return compute_features(
        network, task.images, plan_features(network, len(task.images), task.memory_budget, batch_size=size)
    )


WAYS: dict[str, Callable[[Task], Cost]] = {
    "whole": train_whole,
    "paper": train_as_the_paper,
    "cached": train_on_cached_features,
    "fast": train_fast,
}


def _maps(stages: Iterable[nn.Module], images: Tensor, exits: Sequence[int]) -> list[Tensor]:
    current, maps = images, {}
    for number, stage in enumerate(list(stages)[: max(exits) + 1]):
        current = stage(current)
        if number in exits:
            maps[number] = current
    return [maps[i] for i in exits]


def _sgd(parameters: object, settings: PersonalisationSettings) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)  # type: ignore[arg-type]


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _run(step: Callable[[Tensor], None], task: Task) -> tuple[float, int]:
    """Return the seconds of the schedule, and how many steps they were scaled from, 0 if none."""
    generator = torch.Generator().manual_seed(task.seed)
    count, times, size = len(task.labels), [], task.settings.batch_size
    begin = time.perf_counter()
    for _ in range(task.settings.epochs):
        for batch in torch.randperm(count, generator=generator).split(size):
            if len(batch) == 1:
                # BatchNorm cannot normalise a single sample on a 1x1 map
                continue
            start = time.perf_counter()
            step(batch)
            times.append((time.perf_counter() - start) / len(batch))
            if task.steps is not None and len(times) == WARM_UP_STEPS + task.steps:
                return float(np.median(times[WARM_UP_STEPS:])) * task.settings.epochs * count, task.steps
    return time.perf_counter() - begin, 0
