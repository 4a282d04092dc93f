"""`persephonee device run|status`: a device that lives with its user, without a server, without Flower and Ray."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.model_graphs import load_for_device
from persephonee.commands.option_groups import OptionGroup, with_groups
from persephonee.commands.options import (
    DEFAULT_SOURCES,
    PERSONALISATION,
    SPLIT_CLASS,
    AsJson,
    Seed,
    Sources,
    compute_settings,
    data_settings,
    loss_settings,
    refuse_missing_labels,
    runtime_settings,
    schedule_settings,
    source_names,
)

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network
    from persephonee.clients.personalisation.settings import PersonalisationSettings
    from persephonee.clients.runtime.conditions import ConditionSettings
    from persephonee.clients.runtime.device import Device
    from persephonee.clients.runtime.device_state import Clock, DeviceStateSource
    from persephonee.clients.runtime.drift import DriftSettings
    from persephonee.clients.runtime.frames import Item
    from persephonee.clients.runtime.settings import OrchestratorSettings, SampleStoreSettings
    from persephonee.data_partitions.samples import UserSamples
    from persephonee.data_partitions.settings import DataSettings, SplitSettings
    from persephonee.fl_app.settings.app_settings import LossSettings
    from persephonee.multi_exit.settings import ComputeSettings, RuntimeSettings
    from persephonee.multi_exit.storage import ModelMetadata

LIFE = "Life"
REPLAY_BEGINS = 1_767_254_400.0
"""1 January 2026, 8 h UTC, in seconds since 1970."""

POWERS = ("auto", "linux", "night", "always")

device_app = typer.Typer(no_args_is_help=True, help="A device that lives with its user, with and without a server.")


ORCHESTRATOR = OptionGroup(
    "persephonee.clients.runtime.settings:OrchestratorSettings",
    LIFE,
    only=("p_expl", "initial_threshold"),
    renamed={"initial_threshold": "threshold"},
)
DRIFT = OptionGroup("persephonee.clients.runtime.drift:DriftSettings", LIFE, only=("rule",), renamed={"rule": "drift"})
CONDITIONS = OptionGroup(
    "persephonee.clients.runtime.conditions:ConditionSettings",
    LIFE,
    only=("min_new_samples", "min_calibration", "max_load"),
)
BOUNDS = OptionGroup(
    "persephonee.clients.runtime.settings:SampleStoreSettings", LIFE, only=("max_bytes", "max_age_days")
)


@device_app.command("run")
@with_groups(
    data=data_settings,
    labelled=OptionGroup(SPLIT_CLASS, PERSONALISATION, only=("labels",)),
    loss=loss_settings,
    schedule=schedule_settings,
    orchestrator=ORCHESTRATOR,
    drift_rule=DRIFT,
    conditions=CONDITIONS,
    bounds=BOUNDS,
    runtime=runtime_settings,
    compute=compute_settings,
)
def run(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    store: Annotated[Path, typer.Option(help="Folder of this device: samples, personal exits, state, events.")],
    data: "DataSettings",
    loss: "LossSettings",
    schedule: "PersonalisationSettings",
    labelled: "SplitSettings",
    orchestrator: "OrchestratorSettings",
    drift_rule: "DriftSettings",
    conditions: "ConditionSettings",
    bounds: "SampleStoreSettings",
    runtime: "RuntimeSettings",
    compute: "ComputeSettings",
    hours: Annotated[str, typer.Option(help="Local hours in which rounds may begin.", rich_help_panel=LIFE)] = "22-6",
    watch: Annotated[
        Path | None, typer.Option(help="A folder that is watched for images; without it DATA is played again.")
    ] = None,
    user: Annotated[str, typer.Option(help="The user's id in the data, or of this device's owner.")] = "",
    speed: Annotated[float, typer.Option(help="Of a replay, over real time; 0 does not wait.", min=0)] = 0.0,
    every: Annotated[float, typer.Option(help="Simulated minutes between two samples of a replay; above 0.")] = 15.0,
    power: Annotated[
        str,
        typer.Option(
            help="Who tells the device's state: linux, night (charges by night) or always (asks for nothing, not even "
            "the hour); auto is linux for a watched folder and night for a replay.",
        ),
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print events only.")] = False,
    as_json: AsJson = False,
    sources: Sources = DEFAULT_SOURCES,
    seed: Seed = 0,
) -> None:
    """Answer images, explore, and personalise when the device is free; stops on Ctrl-C and SIGTERM.

    A second call on the same store goes on where the first one stopped.
    """
    from persephonee.clients.errors import ClientSettingsError
    from persephonee.clients.personalisation.exit_store import ExitStore
    from persephonee.clients.runtime.device import Device
    from persephonee.clients.runtime.device_database import NAME, DeviceDatabase
    from persephonee.clients.runtime.device_run import Stop, run_device, stopped_by_signals
    from persephonee.clients.runtime.device_settings import DeviceSettings
    from persephonee.commands.device_output import DeviceLines

    refuse_missing_labels(loss, labelled.labels)
    begin, end = _hours(hours)
    if power == "always":
        begin = end = 0.0
    settings = DeviceSettings(
        client_id=user or "owner",
        orchestrator=replace(
            orchestrator,
            drop_tolerance=schedule.drop_tolerance,
            drift=drift_rule,
            conditions=replace(conditions, from_hour=begin, to_hour=end),
        ),
        samples=bounds,
        personalisation=schedule,
        weights=loss.weights,
        seed=seed,
    )
    trains_heads = schedule.schedule == "paper"
    network, metadata = load_for_device(model, source_names(sources), runtime, compute, trains_heads=trains_heads)
    samples = None if watch else _load_user(data, user, network, metadata, source_names(sources))
    clock, source = _clock_and_power(power, replay=samples is not None)
    class_names = metadata.class_names or tuple(str(label) for label in range(network.num_classes))
    lines = DeviceLines(class_names, clock, as_json=as_json, quiet=quiet)
    if not every > 0:
        raise typer.BadParameter(f"a sample every {every:g} minutes does not do: give more than 0.")
    # what is wrong is said before anything is made in the store
    exit_store = ExitStore(store)
    if not (store / NAME).exists():
        own = network.exit_state()
        exit_store.load(network.backbone_fingerprint, own, settings.client_id, graphs=network.graphs_fingerprint)
    if watch is not None and not watch.is_dir():
        raise ClientSettingsError(f"there is no folder {watch} to watch: make it, or name another.")
    database, stop = DeviceDatabase(store), Stop()
    try:
        device = Device(network, database, exit_store, settings, clock, source, lines.show_event)
        items = _items(
            device, network, class_names, watch, samples, labelled.labels, clock, every, speed, seed, stop.wait
        )
        with stopped_by_signals(stop, device):
            run_device(device, items, lines.show_answer, stop)
    finally:
        database.close()


@device_app.command("status")
def status(
    *,
    store: Annotated[Path, typer.Option(help="Folder of the device.")],
    events: Annotated[int, typer.Option(help="How many of the last events.", min=0, max=1_000_000)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the phase, the policy, what was learned and saved so far, and the last events."""
    from persephonee.clients.runtime.device_status import read_status
    from persephonee.commands.device_output import show_status

    found = read_status(store, events)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        show_status(found)


def _load_user(
    data: "DataSettings", user: str, network: "Network", metadata: "ModelMetadata", allowed: tuple[str, ...]
) -> "UserSamples":
    from persephonee.data_partitions.user_ids import find_user
    from persephonee.fl_app.errors import AppError
    from persephonee.fl_app.wire.model_fit import open_fitting

    partitions = open_fitting(data, network, metadata, allowed)
    index = find_user(partitions.client_ids, user)
    if index is None:
        some = ", ".join(partitions.client_ids[:3])
        raise AppError(f"{partitions.name} has no user {user!r}: give --user, such as {some}, or a folder to --watch.")
    return partitions.load_partition(index)


def _items(
    device: "Device",
    network: "Network",
    class_names: tuple[str, ...],
    watch: Path | None,
    samples: "UserSamples | None",
    labelled: float,
    clock: "Clock",
    every: float,
    speed: float,
    seed: int,
    wait: Callable[[float], object],
) -> "Iterable[Item]":
    from persephonee.clients.runtime.device_state import ScriptedClock
    from persephonee.clients.runtime.frames import ReplayedUser, WatchedFolder

    if watch is not None:
        return WatchedFolder(watch, network.input_shape, class_names, device.has_answered)
    assert samples is not None
    assert isinstance(clock, ScriptedClock)
    return ReplayedUser(
        samples,
        labelled=labelled,
        clock=clock,
        every_s=60 * every,
        speed=speed,
        is_known=device.has_answered,
        seed=seed,
        wait=wait,
    )


def _clock_and_power(power: str, *, replay: bool) -> "tuple[Clock, DeviceStateSource]":
    """Return the clock and the power supply: a replay lives in simulated time, from 1 January 2026, 8 h UTC."""
    from persephonee.clients.runtime.device_state import (
        LinuxDevice,
        ScriptedClock,
        ScriptedDevice,
        SystemClock,
        always_ready,
        night_charging,
    )
    from persephonee.fl_app.errors import AppError

    if power not in POWERS:
        raise AppError(f"--power {power} is not known: choose one of {', '.join(POWERS)}.")
    clock: Clock = ScriptedClock(REPLAY_BEGINS) if replay else SystemClock()
    zone = UTC if replay else None
    chosen = power if power != "auto" else "night" if replay else "linux"
    if chosen == "linux":
        return clock, LinuxDevice(clock)
    script = night_charging if chosen == "night" else always_ready
    return clock, ScriptedDevice(clock, partial(script, zone=zone))


def _hours(text: str) -> tuple[float, float]:
    from persephonee.fl_app.errors import AppError

    begin, _, end = text.partition("-")
    try:
        return float(begin), float(end)
    except ValueError:
        raise AppError(f"--hours {text} is not known: give two hours of the day such as 22-6.") from None
