"""A stream lived through by a whole device, on a simulated clock, with a charger by night (Sec. 3.4)."""

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.runtime.conditions import ConditionSettings
from persephonee.clients.runtime.device import Device
from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.device_settings import DeviceSettings, Frame
from persephonee.clients.runtime.device_state import ScriptedClock, ScriptedDevice, night_charging
from persephonee.clients.runtime.drift import DriftSettings, Rule
from persephonee.clients.runtime.event_log import Event
from persephonee.clients.runtime.settings import OrchestratorSettings
from persephonee.experiments.lifelong.streams import SAMPLES_PER_DAY, Stream
from persephonee.multi_exit.network import MultiExitNetwork

BEGIN = 1_767_225_600.0
"""1 January 2026, 0 h UTC."""

HOUR_S = 3600.0
STRATEGIES = ("never personalised", "personalised once", "orchestrated")


@dataclass(frozen=True, kw_only=True, eq=False)
class LifeRecord:
    """What happened in a device's life; arrays have one value per sample.

    Attributes:
        stream: the samples that the device saw.
        num_exits: M, the number of early exits of the network.
        correct: whether the prediction was the label.
        exits: index of the exit that answered.
        cost: cost of the prediction over the original network's, exploration not counted.
        latency_ms: latency of the prediction, exploration not counted; NaN for explored samples.
        thresholds: the threshold in force.
        asked: whether a round had been asked for and was not done yet.
        rounds: numbers of the samples after which rounds were done.
        events: the events of the device, each with its day.
    """

    stream: Stream
    num_exits: int
    correct: NDArray[np.bool_]
    exits: NDArray[np.int64]
    cost: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    asked: NDArray[np.bool_]
    rounds: list[int]
    events: list[Event]


def orchestrator_settings(strategy: str, p_expl: float, rule: Rule) -> OrchestratorSettings:
    """Return the settings of one of the `STRATEGIES`; they differ in what they may learn and in nothing else."""
    settings = OrchestratorSettings(
        p_expl=p_expl,
        drift=DriftSettings(rule=rule),
        conditions=ConditionSettings(min_new_samples=250, min_new_when_asked=20),
    )
    if strategy == "orchestrated":
        return settings
    return replace(settings, adapts=False, max_rounds=0 if strategy == "never personalised" else 1)


def live(
    network: MultiExitNetwork,
    stream: Stream,
    settings: OrchestratorSettings,
    seed: int,
    personalisation: PersonalisationSettings | None = None,
) -> LifeRecord:
    """Live through a stream, ten samples a day between 8 and 22 h, with a look at the charger at 2 h.

    Args:
        network: the global model; its exits are the global ones again afterwards.
        stream: the samples, in the order of their arrival.
        settings: the orchestrator's settings.
        seed: the device's seed, which decides what it explores and how it trains.
        personalisation: of the rounds, with the rule that chooses policies; None takes the paper's.
    """
    clock = ScriptedClock(BEGIN)
    global_exit_weights = network.exit_state()
    database = DeviceDatabase(None)
    events: list[Event] = []
    device_settings = DeviceSettings(
        client_id=stream.name,
        orchestrator=settings,
        personalisation=personalisation or PersonalisationSettings(rule="paper"),
        seed=seed,
    )
    source = ScriptedDevice(clock, partial(night_charging, zone=UTC))
    rows, rounds = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = ExitStore(Path(folder))
        device = Device(network, database, store, device_settings, clock, source, events.append)
        for i in range(len(stream.labels)):
            day, place = divmod(i, SAMPLES_PER_DAY)
            if place == 0 and day:
                clock.now = BEGIN + (24 * day + 2) * HOUR_S
                if device.personalise_if_due() is not None:
                    rounds.append(i)
            clock.now = BEGIN + (24 * day + 8 + 14 * place / SAMPLES_PER_DAY) * HOUR_S
            rows.append(_answer(device, stream, i))
    database.close()
    network.load_exit_state(global_exit_weights)
    correct, exits, cost, latency, thresholds, asked = (np.array(column) for column in zip(*rows, strict=True))
    return LifeRecord(
        stream=stream,
        num_exits=len(network.heads),
        correct=correct,
        exits=exits,
        cost=cost,
        latency_ms=latency,
        thresholds=thresholds,
        asked=asked,
        rounds=rounds,
        events=events,
    )


def _answer(device: Device, stream: Stream, i: int) -> tuple[bool, int, float, float, float, bool]:
    truth = int(stream.labels[i])
    policy, costs = device.policy, device.network.costs
    answer = device.answer(Frame(key=f"{i}", image=stream.images[i], label=truth))
    leaving = dict(zip((*policy.exits_in_use, policy.num_exits), costs.leaving_macs(policy.exits_in_use), strict=True))
    return (
        answer.label == truth,
        answer.exit,
        leaving[answer.exit] / costs.original_macs,
        float("nan") if answer.explored else answer.latency_ms,
        policy.threshold,
        bool(device.orchestrator.state.asked),
    )


@torch.no_grad()
def original_predictions(network: MultiExitNetwork, stream: Stream) -> NDArray[np.bool_]:
    """Return whether the last exit alone is right on each sample."""
    batches = [
        network.features(batch.float() / 255)[1].argmax(dim=1) for batch in torch.as_tensor(stream.images).split(64)
    ]
    correct: NDArray[np.bool_] = torch.cat(batches).numpy() == stream.labels
    return correct
