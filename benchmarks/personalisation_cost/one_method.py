"""One way to personalise in a process of its own, whose peak memory is the way's: `python -m ... WAY JSON`."""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from persephonee.benchmarks.machine import forget_peak, matrix_macs_per_second, peak_resident_bytes
from persephonee.benchmarks.personalisation_cost.methods import WAYS, Cost, Task
from persephonee.benchmarks.users import load_user
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import UserSamples, to_float
from persephonee.data_partitions.settings import DataSettings, Flat, SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network

WARM_UP_SAMPLES = 4
"""Of the first user, before anything is measured."""


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What one process measures; travels as JSON."""

    method: str
    """A key of `persephonee.benchmarks.personalisation_cost.methods.WAYS`."""

    only_first: bool
    """Train exit 0 alone; else all exits."""

    model: str
    """Folder of the global model."""

    sources: tuple[str, ...]
    data: Flat
    users: tuple[str, ...]
    threads: int
    epochs: int
    batch_size: int
    max_train: int | None
    """Train on at most so many samples of a user; None takes all."""

    max_test: int
    steps: int | None
    seed: int
    memory_budget: int | None = None

    @property
    def name(self) -> str:
        """The way and its exits, in words."""
        return f"{self.method}, {'exit 0' if self.only_first else 'all exits'}"


def measure_way(settings: MethodSettings) -> list[dict[str, Any]]:
    """Return a row for each user, after a short run that is not counted."""
    torch.set_num_threads(settings.threads)
    partitions = open_partitions(DataSettings.from_flat(settings.data))
    warm_up = replace(settings, epochs=1, steps=None, max_train=WARM_UP_SAMPLES, max_test=WARM_UP_SAMPLES)
    rows = []
    for user, how in [(settings.users[0], warm_up), *((user, settings) for user in settings.users)]:
        # a fresh copy: a way may have changed every weight
        network, _ = load_network(Path(settings.model), settings.sources)
        samples = load_user(partitions, user)
        rows.append({"user": user, **_measure_user(how, network.freeze_backbone(), samples)})
    # last, for its matrices would count as the way's memory
    rates = {"float32_rate": matrix_macs_per_second(), "bfloat16_rate": matrix_macs_per_second(torch.bfloat16)}
    return [{**row, **rates} for row in rows[1:]]


def _measure_user(settings: MethodSettings, network: MultiExitNetwork, samples: UserSamples) -> dict[str, Any]:
    split = split_samples(samples, SplitSettings(), settings.seed)
    train = torch.as_tensor(split.train[: settings.max_train])
    task = Task(
        network=network,
        exits=(0,) if settings.only_first else tuple(range(network.num_exits)),
        images=torch.as_tensor(samples.images)[train],
        labels=torch.as_tensor(samples.labels)[train],
        settings=PersonalisationSettings(epochs=settings.epochs, batch_size=settings.batch_size),
        steps=settings.steps,
        seed=settings.seed,
        memory_budget=settings.memory_budget,
    )
    earlier = peak_resident_bytes()
    forget_peak()
    before = peak_resident_bytes()
    cost = WAYS[settings.method](task)
    peak = peak_resident_bytes()
    return {
        "way": settings.method,
        "exits": "exit 0" if settings.only_first else "all exits",
        "num_train": len(train),
        "seconds": cost.seconds,
        "steps": cost.steps,
        "passes": cost.passes,
        "macs": cost.macs,
        "peak_bytes": max(earlier, peak),
        "own_bytes": peak - before,
        "accuracy": _accuracy(cost, network, samples, split, settings.max_test),
    }


@torch.no_grad()
def _accuracy(
    cost: Cost, network: MultiExitNetwork, samples: UserSamples, split: SampleSplit, at_most: int
) -> float | None:
    """Return the mean accuracy of the trained exits on test samples, or None where training was not finished."""
    if not cost.trained:
        return None
    test = torch.as_tensor(split.test[:at_most])
    logits = [network(to_float(samples.images[piece.numpy()])) for piece in test.split(32)]
    predictions = [torch.cat([batch[exit] for batch in logits]).argmax(dim=1) for exit in cost.trained]
    return float(
        torch.stack([answer == torch.as_tensor(samples.labels)[test] for answer in predictions]).float().mean()
    )


def to_json(settings: MethodSettings) -> str:
    """Return the settings as the process takes them."""
    return json.dumps(asdict(settings))


def from_json(text: str) -> MethodSettings:
    """Return the settings that `to_json` wrote."""
    values = json.loads(text)
    return MethodSettings(**{**values, "sources": tuple(values["sources"]), "users": tuple(values["users"])})


if __name__ == "__main__":
    print(json.dumps(measure_way(from_json(sys.argv[1]))))
