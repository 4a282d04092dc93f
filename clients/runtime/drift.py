"""Drift detection on the losses that exploration measures (Sec. 3.4): has an exit become worse than it was validated?

Three rules, one detector per exit in use: ADWIN and Page-Hinkley, as `river` has them, and the paper's plain rule. All
look for a loss that rises; a loss that falls is no reason to worry.
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from persephonee.clients.errors import ClientSettingsError

Rule = Literal["adwin", "page-hinkley", "plain"]
RULES = get_args(Rule)

LOSS_CAP = 1.0
"""Nats: one absurd sample must not look like drift, and capped losses tell a shift from noise best."""

LEAST_SPREAD = 0.05
"""Nats. Exits that were validated without a flaw have no spread, and the first harmless loss is no drift either."""

UNKNOWN_SPREAD = 0.2
"""Nats, until a calibration has measured it."""

ADWIN_RANGE = 1.5
"""ADWIN takes values in [0, 1]: this many spreads of the validated loss are its 1."""


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """Which rule, and its parameters.

    Losses are measured in spreads, the standard deviation of the validated loss: exits and data differ by a factor of
    ten in nats.

    Raises:
        ClientSettingsError: a setting is out of its range.
    """

    rule: Rule = "page-hinkley"
    """What notices a rising loss; adwin and page-hinkley need the package river."""

    adwin_delta: float = 0.6
    """ADWIN's confidence, in (0, 1): smaller raises fewer false alarms and notices later (Bifet & Gavalda 2007).

    Its bound is a cautious one: river's default of 0.002, meant for streams of many thousands, hardly ever fires on
    the hundreds that a device explores.
    """

    page_hinkley_delta: float = 0.1
    """Page-Hinkley: the rise in spreads that is of no interest, >= 0."""

    page_hinkley_threshold: float = 20.0
    """Page-Hinkley: the accumulated rise in spreads that raises the alarm, > 0."""

    window: int = 40
    """Plain rule: explored samples in a window, at least 2."""

    margin: float = 0.5
    """Plain rule: how many spreads the window's mean loss may lie above the validated one, >= 0."""

    times: int = 5
    """Plain rule: how many windows in a row, each a sample further, must lie above it."""

    def __post_init__(self) -> None:
        self._require("rule", self.rule in RULES, f"one of {', '.join(RULES)}")
        self._require("adwin_delta", 0 < self.adwin_delta < 1, "a number in (0, 1)")
        self._require("page_hinkley_delta", self.page_hinkley_delta >= 0, "a number >= 0")
        self._require("page_hinkley_threshold", self.page_hinkley_threshold > 0, "a number > 0")
        self._require("window", self.window >= 2, "at least 2")
        self._require("margin", self.margin >= 0, "a number >= 0")
        self._require("times", self.times >= 1, "at least 1")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ClientSettingsError(f"{name}={getattr(self, name)!r} is out of its range: expected {expected}.")


class Detector(Protocol):
    """Watches the loss of one exit."""

    def update(self, loss: float) -> bool:
        """Add the next loss, in spreads, and return whether the loss has risen."""


class AdwinDetector:
    """ADWIN: a window that drops its older part when the two parts' means differ by more than chance."""

    def __init__(self, settings: DriftSettings) -> None:
        from river import drift

        adwin: Any = drift.ADWIN
        # looked at after each sample: explored samples are few
        self._adwin = adwin(delta=settings.adwin_delta, clock=1)

    def update(self, loss: float) -> bool:
        """Add the next loss and return whether the window was cut and its mean is higher than before."""
        before = self._adwin.estimation
        self._adwin.update(min(loss / ADWIN_RANGE, 1.0))
        return bool(self._adwin.drift_detected and self._adwin.estimation > before)


class PageHinkleyDetector:
    """Page-Hinkley: the accumulated rise of the loss above its own mean, compared with a threshold."""

    def __init__(self, settings: DriftSettings) -> None:
        from river import drift

        self._test: Any = drift.PageHinkley(
            min_instances=10,
            delta=settings.page_hinkley_delta,
            threshold=settings.page_hinkley_threshold,
            alpha=1.0,
            mode="up",
        )

    def update(self, loss: float) -> bool:
        """Add the next loss and return whether the accumulated rise is above the threshold."""
        self._test.update(loss)
        return bool(self._test.drift_detected)


class PlainRule:
    """The paper's rule: the loss is consistently higher than at calibration.

    Args:
        settings: window, margin and how many times in a row.
        validated: mean loss at calibration, in spreads; None takes the first window's.
    """

    def __init__(self, settings: DriftSettings, validated: float | None) -> None:
        self._settings = settings
        self._validated = validated
        self._recent: deque[float] = deque(maxlen=settings.window)
        self._in_a_row = 0

    def update(self, loss: float) -> bool:
        """Add the next loss and return whether enough windows in a row lay above the validated loss."""
        self._recent.append(loss)
        if len(self._recent) < self._settings.window:
            return False
        mean = sum(self._recent) / len(self._recent)
        if self._validated is None:
            self._validated = mean
        above = mean > self._validated + self._settings.margin
        self._in_a_row = self._in_a_row + 1 if above else 0
        return self._in_a_row >= self._settings.times


class DriftMonitor:
    """One detector for each exit in use.

    Args:
        settings: the rule and its parameters.
        validated: for each exit in use, its losses on the calibration samples, in nats; empty where there are none.
            ADWIN and Page-Hinkley are given them first, as the past with which they compare.
    """

    def __init__(self, settings: DriftSettings, validated: Sequence[Sequence[float]]) -> None:
        self._spreads = [_spread(losses) for losses in validated]
        self._detectors = [
            _detector(settings, [_measured(loss, spread) for loss in losses])
            for losses, spread in zip(validated, self._spreads, strict=True)
        ]

    def update(self, losses: Sequence[float]) -> tuple[int, ...]:
        """Add a sample's loss at each exit in use, in nats; return the positions of the exits whose loss has risen."""
        watched = zip(self._detectors, losses, self._spreads, strict=True)
        risen = [detector.update(_measured(loss, spread)) for detector, loss, spread in watched]
        return tuple(position for position, has_risen in enumerate(risen) if has_risen)


def _spread(losses: Sequence[float]) -> float:
    if len(losses) < 2:
        return UNKNOWN_SPREAD
    return max(statistics.pstdev(min(loss, LOSS_CAP) for loss in losses), LEAST_SPREAD)


def _measured(loss: float, spread: float) -> float:
    return min(loss, LOSS_CAP) / spread


def _detector(settings: DriftSettings, validated: Sequence[float]) -> Detector:
    if settings.rule == "plain":
        return PlainRule(settings, sum(validated) / len(validated) if validated else None)
    detector = AdwinDetector(settings) if settings.rule == "adwin" else PageHinkleyDetector(settings)
    for loss in validated:
        detector.update(loss)
    return detector
