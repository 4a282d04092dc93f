"""How many samples pass before a shift is noticed, and how often there is a false alarm, for each drift rule.

The exits are personalised once, on the first part of a stream. What exploration would see of the rest is computed once;
the detectors then watch it many times, in orders and with explored samples drawn anew: long stretches without a shift
for false alarms, and a stretch without followed by one with a shift for the delay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.exit_shifts import with_last_shift
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.runtime.device_round import validate
from persephonee.clients.runtime.drift import DriftMonitor, DriftSettings
from persephonee.clients.runtime.exploration import Explored, Validation, explore_logits
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.experiments.lifelong.streams import Stream
from persephonee.multi_exit.network import MultiExitNetwork

FIRST_SHARE = 0.6
"""Of the samples before the shift, these personalise and calibrate; the rest is what the device sees afterwards."""

CALIBRATION_EVERY = 4
STEADY = 10_000
"""Samples without a shift in which false alarms are counted."""

LEAD = 300
"""Samples without a shift before one."""

PATIENCE = 4_000
"""Samples with a shift after which it counts as missed."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What exploration would see on one device.

    Attributes:
        validation: how the personal exits did on their calibration samples.
        before: samples before the shift that neither trained nor calibrated.
        after: samples after the shift.
    """

    validation: Validation
    before: list[Explored]
    after: list[Explored]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How a rule does.

    Attributes:
        rule: the drift rule.
        delay: median number of samples, explored or not, from the shift to the alarm; inf where most were missed.
        delay_high: 90th percentile.
        noticed: fraction of the shifts that were noticed within `PATIENCE` samples, after no false alarm.
        false_alarms: per 10,000 samples without a shift.
        false_alarms_worst: the same on the device that has most.
    """

    rule: str
    delay: float
    delay_high: float
    noticed: float
    false_alarms: float
    false_alarms_worst: float


def watch(network: MultiExitNetwork, stream: Stream, seed: int) -> Watched:
    """Personalise on the first part of the stream and return what exploration would see of the rest."""
    first = int(FIRST_SHARE * stream.shift)
    samples = UserSamples(client_id=stream.name, images=stream.images[:first], labels=stream.labels[:first])
    order = np.arange(first)
    calibration = order[::CALIBRATION_EVERY]
    train = order[order % CALIBRATION_EVERY != 0]
    split = SampleSplit(train=train, calibration=calibration, test=calibration, labelled=np.ones(first, dtype=bool))
    global_exit_weights = network.exit_state()
    result = personalise(network, samples, split, PersonalisationSettings(rule="paper"), seed=seed)
    network.load_exit_state(result.exit_weights)
    last_shift = None if result.shifts is None else result.shifts[-1]
    validation = validate(network, samples, split, result.policy, 1, last_shift)
    assert validation is not None
    features = with_last_shift(compute_features(network, stream.images[first:]), last_shift)
    outputs = run_exits(network.heads, features, torch.arange(len(stream.labels) - first))
    network.load_exit_state(global_exit_weights)
    policy = result.policy
    explored = explore_logits(outputs.logits[[*policy.exits_in_use, policy.num_exits]].astype(np.float64))
    return Watched(
        validation=validation, before=explored[: stream.shift - first], after=explored[stream.shift - first :]
    )


def measure(watched: Sequence[Watched], settings: DriftSettings, p_expl: float, repeats: int, seed: int) -> Detection:
    """Return how a rule does on the devices that have an exit left to watch.

    Args:
        watched: the devices; those without an exit in use are left out.
        settings: the drift rule and its parameters.
        p_expl: fraction of the samples that is explored, in [0, 1].
        repeats: number of random orders per device.
        seed: determines the orders.
    """
    generator = np.random.default_rng(seed)
    delays: list[float] = []
    alarms = []
    for device in (d for d in watched if d.validation.exits):
        alarms.append(np.mean([_false_alarms(device, settings, p_expl, generator) for _ in range(repeats)]))
        delays += [_delay(device, settings, p_expl, generator) for _ in range(repeats)]
    ordered = np.sort(delays)
    return Detection(
        rule=settings.rule,
        delay=float(ordered[len(ordered) // 2]),
        delay_high=float(ordered[min(int(0.9 * len(ordered)), len(ordered) - 1)]),
        noticed=float(np.isfinite(ordered).mean()),
        false_alarms=float(np.mean(alarms)) * 10_000 / STEADY,
        false_alarms_worst=float(np.max(alarms)) * 10_000 / STEADY,
    )


def _false_alarms(device: Watched, settings: DriftSettings, p_expl: float, generator: np.random.Generator) -> int:
    """Return the alarms on `STEADY` samples drawn from before the shift; after an alarm the detectors start afresh."""
    monitor, alarms = DriftMonitor(settings, device.validation.losses), 0
    for sample in _draw(device.before, generator.binomial(STEADY, p_expl), generator):
        if monitor.update(sample.losses):
            alarms += 1
            monitor = DriftMonitor(settings, device.validation.losses)
    return alarms


def _delay(device: Watched, settings: DriftSettings, p_expl: float, generator: np.random.Generator) -> float:
    """Return how many samples after the shift the alarm comes, inf for never; a false alarm starts the lead afresh."""
    monitor = DriftMonitor(settings, device.validation.losses)
    for sample in _draw(device.before, generator.binomial(LEAD, p_expl), generator):
        if monitor.update(sample.losses):
            monitor = DriftMonitor(settings, device.validation.losses)
    explored = np.flatnonzero(generator.random(PATIENCE) < p_expl)
    for place, sample in zip(explored, _draw(device.after, len(explored), generator), strict=True):
        if monitor.update(sample.losses):
            return float(place + 1)
    return float("inf")


def _draw(samples: list[Explored], count: int, generator: np.random.Generator) -> list[Explored]:
    return [samples[i] for i in generator.integers(len(samples), size=count)]
