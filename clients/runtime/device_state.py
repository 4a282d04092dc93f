"""The state of the device that decides when it may personalise: power, load, temperature, memory and the clock.

From Linux's own files, without a library; a board that lacks one of them gives a sensible answer. Tests and
simulated lives have scripted sources instead.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Protocol

_EXTERNAL_SUPPLIES = {"Mains", "USB", "Wireless"}
_FED = {"charging", "full", "not charging"}
"""What a battery says while a charger feeds it; "not charging" is a charger that has reached its limit."""


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """The present state of the device; a value is None where the device does not report it.

    Attributes:
        plugged_in: whether it runs on external power; always true for a board without a battery.
        battery: charge in [0, 1]; None without a battery.
        load: runnable processes per core over the last minute.
        temperature_celsius: temperature of the hottest thermal zone.
        free_memory_bytes: memory that can be used without swapping.
        hour: local time of day, in [0, 24).
    """

    plugged_in: bool
    battery: float | None
    load: float | None
    temperature_celsius: float | None
    free_memory_bytes: int | None
    hour: float


class Clock(Protocol):
    """The wall clock."""

    def wall(self) -> float:
        """Return seconds since 1970; may jump in either direction."""


class DeviceStateSource(Protocol):
    """Whoever knows the state of the device."""

    def read(self) -> DeviceState:
        """Return the state now."""


class SystemClock:
    """The clock of this machine."""

    def wall(self) -> float:
        """Return seconds since 1970."""
        return time.time()


class ScriptedClock:
    """A clock that somebody sets.

    Attributes:
        now: seconds since 1970.
    """

    def __init__(self, now: float) -> None:
        self.now = now

    def wall(self) -> float:
        """Return `now`."""
        return self.now


class ScriptedDevice:
    """A device whose state follows from the wall clock by a function."""

    def __init__(self, clock: Clock, script: Callable[[float], DeviceState]) -> None:
        self._clock = clock
        self._script = script

    def read(self) -> DeviceState:
        """Return the state at the clock's time."""
        return self._script(self._clock.wall())


def hour_of(wall: float, zone: tzinfo | None = None) -> float:
    """Return the time of day in hours, in `zone`, else in local time."""
    moment = datetime.fromtimestamp(wall, zone)
    return moment.hour + moment.minute / 60 + moment.second / 3600


def night_charging(wall: float, zone: tzinfo | None = None) -> DeviceState:
    """Return the state of a phone that charges from 23 h to 7 h, is full after two hours, and is busy by day."""
    hour = hour_of(wall, zone)
    at_night = hour >= 23 or hour < 7
    hours_charged = (hour - 23) % 24
    return DeviceState(
        plugged_in=at_night,
        battery=min(0.4 + 0.3 * hours_charged, 1.0) if at_night else 1.0 - 0.6 * (hour - 7) / 16,
        load=0.05 if at_night else 0.6,
        temperature_celsius=30.0,
        free_memory_bytes=2 * 2**30,
        hour=hour,
    )


def always_ready(wall: float, zone: tzinfo | None = None) -> DeviceState:
    """Return the state of a board without a battery that has nothing else to do."""
    return DeviceState(
        plugged_in=True,
        battery=None,
        load=0.0,
        temperature_celsius=None,
        free_memory_bytes=None,
        hour=hour_of(wall, zone),
    )


class LinuxDevice:
    """The state of this machine, read from its files in /sys and /proc.

    Args:
        clock: gives the time of day.
        root: the folder that holds sys/ and proc/.
    """

    def __init__(self, clock: Clock, root: Path = Path("/")) -> None:
        self._clock = clock
        self._root = root

    def read(self) -> DeviceState:
        """Return the state now."""
        plugged_in, battery = self._power()
        return DeviceState(
            plugged_in=plugged_in,
            battery=battery,
            load=self._load(),
            temperature_celsius=self._temperature(),
            free_memory_bytes=self._free_memory(),
            hour=hour_of(self._clock.wall()),
        )

    def _power(self) -> tuple[bool, float | None]:
        """Return whether the device is fed, and the least charged of its own batteries."""
        charges, online, fed = [], False, False
        for supply in sorted(self._root.glob("sys/class/power_supply/*")):
            kind, scope = _text(supply / "type"), _text(supply / "scope")
            # a wireless mouse has a battery too, of scope "Device"
            if scope == "Device":
                continue
            if kind == "Battery" and _text(supply / "present") != "0":
                charge = _number(supply / "capacity")
                charges.append(1.0 if charge is None else min(charge / 100, 1.0))
                fed |= (_text(supply / "status") or "").lower() in _FED
            elif kind in _EXTERNAL_SUPPLIES:
                online |= (_number(supply / "online") or 0) > 0
        if not charges:
            return True, None
        return online or fed, min(charges)

    def _load(self) -> float | None:
        fields = (_text(self._root / "proc/loadavg") or "").split()
        try:
            return float(fields[0]) / (os.cpu_count() or 1)
        except (IndexError, ValueError):
            return None

    def _temperature(self) -> float | None:
        zones = (_number(zone) for zone in self._root.glob("sys/class/thermal/thermal_zone*/temp"))
        # zones that are switched off say 0, or absurd values
        known = [value / 1000 for value in zones if value is not None and 0 < value < 150_000]
        return max(known, default=None)

    def _free_memory(self) -> int | None:
        for line in (_text(self._root / "proc/meminfo") or "").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    # a zone that is asleep answers with an I/O error, a battery that is gone with "no such device"
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
