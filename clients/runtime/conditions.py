"""When a device may personalise: never at its user's expense (Sec. 3.4)."""

from dataclasses import dataclass

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.runtime.device_state import DeviceState


@dataclass(frozen=True, kw_only=True)
class ConditionSettings:
    """What must hold before a personalisation round begins.

    Raises:
        ClientSettingsError: a setting is out of its range.
    """

    from_hour: float = 22.0
    """Local time of day from which rounds are allowed, in [0, 24]; equal to `to_hour` means always."""

    to_hour: float = 6.0
    """Local time of day until which they are."""

    min_battery: float = 0.8
    """In [0, 1]; a board without a battery passes."""

    max_load: float = 0.5
    """Runnable processes per core over the last minute, > 0: the device is idle below it."""

    max_celsius: float = 70.0
    """Of the hottest zone."""

    min_free_bytes: int = 256 * 2**20
    """Memory that must be free."""

    min_new_samples: int = 100
    """Training samples since the last round that are reason enough for another one, at least 1."""

    min_new_when_asked: int = 20
    """Training samples since the last round that a round needs which drift or a raised threshold ask for; where
    `min_new_samples` is less, it is enough."""

    min_calibration: int = 20
    """Calibration samples that a round needs, at least 1; the paper's rule sees no drop of 1 % on fewer than 99."""

    far: float = 0.1
    """The active threshold asks for a round where it is this far from the validated one, in (0, 1]."""

    def __post_init__(self) -> None:
        self._require("from_hour", 0 <= self.from_hour <= 24, "a number in [0, 24]")
        self._require("to_hour", 0 <= self.to_hour <= 24, "a number in [0, 24]")
        self._require("min_battery", 0 <= self.min_battery <= 1, "a number in [0, 1]")
        self._require("max_load", self.max_load > 0, "a number > 0")
        self._require("min_new_samples", self.min_new_samples >= 1, "at least 1")
        self._require("min_new_when_asked", self.min_new_when_asked >= 1, "at least 1")
        self._require("min_calibration", self.min_calibration >= 1, "at least 1")
        self._require("far", 0 < self.far <= 1, "a number in (0, 1]")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ClientSettingsError(f"{name}={getattr(self, name)} is out of range: expected {expected}.")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Why the device might want a round.

    Attributes:
        new_train: training samples stored since the last round.
        calibration: calibration samples in the store.
        asked: why a round was asked for, empty where it was not.
        threshold: active, thr'_conf.
        validated: threshold that the last calibration chose; None before the first.
    """

    new_train: int
    calibration: int
    asked: str
    threshold: float
    validated: float | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether to personalise now.

    Attributes:
        go: whether.
        wanted: whether the device would, if its state allowed it.
        cause: what decides, in a word that stays the same while the figures change.
        reason: a sentence.
    """

    go: bool
    wanted: bool
    cause: str
    reason: str


def scarcity(state: DeviceState, settings: ConditionSettings) -> float:
    """Return how scarce energy and computing time are, from 0 (fed and idle) to 1 (an empty battery, or twice the load
    below which a device counts as idle).
    """
    battery = 0.0 if state.plugged_in or state.battery is None else 1 - min(max(state.battery, 0.0), 1.0)
    load = 0.0 if state.load is None else min(max(state.load / settings.max_load - 1, 0.0), 1.0)
    return max(battery, load)


def decide(needs: Needs, state: DeviceState, settings: ConditionSettings) -> Decision:
    """Decide whether a round begins now, and say why or why not."""
    cause, reason = _want(needs, settings)
    if not cause:
        return Decision(go=False, wanted=False, cause="not needed", reason=reason)
    hindrance = _hindrance(state, settings)
    if hindrance is not None:
        return Decision(go=False, wanted=True, cause=f"{cause}, {hindrance[0]}", reason=f"{reason}, but {hindrance[1]}")
    return Decision(go=True, wanted=True, cause=cause, reason=f"{reason}, and the device is free")


def _want(needs: Needs, settings: ConditionSettings) -> tuple[str, str]:
    """Return the cause for a round, empty for none, and a sentence."""
    few = f"{needs.new_train} new training and {needs.calibration} calibration samples"
    # what is reason enough by itself is enough where a round is asked for, too
    fewest = min(settings.min_new_when_asked, settings.min_new_samples)
    if needs.calibration < settings.min_calibration or needs.new_train < fewest:
        return "", f"{few} are too few for a round"
    if needs.asked:
        return "asked", f"{needs.asked}, and there are {few}"
    if needs.validated is not None and abs(needs.threshold - needs.validated) >= settings.far - 1e-9:
        return "far", f"the active threshold {needs.threshold:g} is far from the validated {needs.validated:g}"
    if needs.new_train >= settings.min_new_samples:
        return "samples", f"{needs.new_train} new training samples are enough"
    return "", f"{few} are not enough, and nothing asks for a round"


def _hindrance(state: DeviceState, settings: ConditionSettings) -> tuple[str, str] | None:
    """Return what keeps the device from personalising, a word and a clause; None for nothing."""
    begin, end = settings.from_hour, settings.to_hour
    allowed = begin == end or (begin <= state.hour < end if begin < end else state.hour >= begin or state.hour < end)
    battery, load, heat, memory = state.battery, state.load, state.temperature_celsius, state.free_memory_bytes
    checks = (
        (not state.plugged_in, "unplugged", "the device is not plugged in"),
        (
            battery is not None and battery < settings.min_battery,
            "battery",
            f"the battery is at {battery or 0:.0%}, below {settings.min_battery:.0%}",
        ),
        (not allowed, "hours", f"it is {_clock(state.hour)}, outside {_clock(begin)} to {_clock(end)}"),
        (
            load is not None and load > settings.max_load,
            "busy",
            f"the device is busy ({load or 0:.2f} processes per core, above {settings.max_load:g})",
        ),
        (
            heat is not None and heat > settings.max_celsius,
            "hot",
            f"the device is hot ({heat or 0:.0f} °C, above {settings.max_celsius:g})",
        ),
        (
            memory is not None and memory < settings.min_free_bytes,
            "memory",
            f"{(memory or 0) / 2**20:.0f} MiB of memory are free, below {settings.min_free_bytes / 2**20:.0f}",
        ),
    )
    return next(((cause, clause) for holds, cause, clause in checks if holds), None)


def _clock(hour: float) -> str:
    minutes = int(hour * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
