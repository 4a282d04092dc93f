"""Parts of a device for tests: a scripted clock and power supply, and frames from the toy users."""

from dataclasses import dataclass, replace
from pathlib import Path

from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.runtime.conditions import ConditionSettings
from persephonee.clients.runtime.device import Device
from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.device_settings import DeviceSettings, Frame
from persephonee.clients.runtime.device_state import DeviceState, ScriptedClock, ScriptedDevice
from persephonee.clients.runtime.drift import DriftSettings
from persephonee.clients.runtime.event_log import Event
from persephonee.clients.runtime.settings import OrchestratorSettings, SampleStoreSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.multi_exit.network import MultiExitNetwork

MIDNIGHT = 1_767_225_600.0
"""2026-01-01 00:00 UTC."""

READY = DeviceState(plugged_in=True, battery=1.0, load=0.0, temperature_celsius=30.0, free_memory_bytes=2**31, hour=2.0)

SETTINGS = DeviceSettings(
    client_id="f0001_01",
    orchestrator=OrchestratorSettings(
        p_expl=0.5,
        drift=DriftSettings(rule="plain"),
        conditions=ConditionSettings(min_new_samples=30, min_new_when_asked=10, min_calibration=5),
    ),
    samples=SampleStoreSettings(similar_bits=-1),
    personalisation=PersonalisationSettings(epochs=2),
)


def leave_pages(database: DeviceDatabase, more: int) -> None:
    """Let the file of a database grow by so many pages and no further: SQLite then answers as on a full disk."""
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages + more}")


@dataclass
class Life:
    """A device and what it is fed with; `state` is what its power supply and its load will say next."""

    device: Device
    clock: ScriptedClock
    database: DeviceDatabase
    events: list[Event]
    script: dict[str, DeviceState]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def set_state(self, **changes: object) -> None:
        self.script["state"] = replace(self.script["state"], **changes)

    def stop(self) -> None:
        self.database.close()


def start(network: MultiExitNetwork, folder: Path, settings: DeviceSettings = SETTINGS) -> Life:
    """Start a device on a store, as a new process would."""
    clock, events, script = ScriptedClock(MIDNIGHT), [], {"state": READY}
    database = DeviceDatabase(folder)
    source = ScriptedDevice(clock, lambda wall: script["state"])
    try:
        device = Device(network, database, ExitStore(folder), settings, clock, source, events.append)
    except BaseException:
        database.close()
        raise
    return Life(device=device, clock=clock, database=database, events=events, script=script)


def frames_of(user: UserSamples, start: int = 0, stop: int | None = None, labelled: bool = True) -> list[Frame]:
    """Return a user's samples as frames."""
    stop = len(user) if stop is None else stop
    return [
        Frame(key=f"frame {i}", image=user.images[i], label=int(user.labels[i]) if labelled else None)
        for i in range(start, stop)
    ]
