"""Drift detection on the losses that exploration measures (Sec. 3.4): has an exit become worse than it was validated?

Three rules, one detector per exit in use: ADWIN (adwin.py), Page-Hinkley, and the paper's plain rule. All
look for a loss that rises; a loss that falls is no reason to worry.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.runtime.adwin import Adwin

Rule = Literal["adwin", "page-hinkley", "plain"]
RULES = get_args(Rule)

LEAST_CAP = 1.0
"""Nats: one absurd sample must not look like drift, and capped losses tell a shift from noise best."""

CAP_MEANS = 3.0
"""A loss counts up to this many times the validated mean: with many classes that mean may lie above a nat itself."""

LEAST_SPREAD = 0.05
"""Nats. Exits that were validated without a flaw have no spread, and the first harmless loss is no drift either."""

FIRST_LOSSES = 20
"""Explored samples from which an exit is watched that no calibration has validated."""

LEAST_LOSSES = 10
"""Page-Hinkley raises no alarm before."""

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
    """What notices a rising loss."""

    adwin_delta: float = 0.6
    """ADWIN's confidence, in (0, 1): smaller raises fewer false alarms and notices later (Bifet & Gavalda 2007).

    Its bound is a cautious one: its usual value of 0.002, meant for streams of many thousands, hardly ever fires on
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
        self._adwin = Adwin(settings.adwin_delta)

    def update(self, loss: float) -> bool:
        """Add the next loss and return whether the window was cut and its mean is higher than before."""
        before = self._adwin.mean
        return self._adwin.update(min(max(loss / ADWIN_RANGE, 0.0), 1.0)) and self._adwin.mean > before


class PageHinkleyDetector:
    """Page-Hinkley: the accumulated rise of the loss above its own mean, compared with a threshold (Page 1954).

    As river's `PageHinkley` counts without forgetting, and without river, which brings pandas and SciPy to a device.
    """

    def __init__(self, settings: DriftSettings) -> None:
        self._delta, self._threshold = settings.page_hinkley_delta, settings.page_hinkley_threshold
        self._count, self._mean = 0, 0.0
        self._rise, self._least = 0.0, math.inf

    def update(self, loss: float) -> bool:
        """Add the next loss and return whether the accumulated rise is above the threshold; then it begins anew."""
        self._count += 1
        self._mean += (loss - self._mean) / self._count
        self._rise += loss - self._mean - self._delta
        self._least = min(self._least, self._rise)
        has_risen = self._count >= LEAST_LOSSES and self._rise - self._least > self._threshold
        if has_risen:
            self._begin()
        return has_risen

    def _begin(self) -> None:
        self._count, self._mean = 0, 0.0
        self._rise, self._least = 0.0, math.inf


class PlainRule:
    """The paper's rule: the loss is consistently higher than at calibration.

    Args:
        settings: window, margin and how many times in a row.
        validated: mean loss at calibration, in spreads.
    """

    def __init__(self, settings: DriftSettings, validated: float) -> None:
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
        above = mean > self._validated + self._settings.margin
        self._in_a_row = self._in_a_row + 1 if above else 0
        return self._in_a_row >= self._settings.times


class DriftMonitor:
    """One detector for each exit in use.

    Args:
        settings: the rule and its parameters.
        validated: for each exit in use, its losses on the calibration samples, in nats; empty where there are none.
            The first `FIRST_LOSSES` that are explored then take their place.
    """

    def __init__(self, settings: DriftSettings, validated: Sequence[Sequence[float]]) -> None:
        self._exits = [_WatchedExit(settings, losses) for losses in validated]

    def update(self, losses: Sequence[float]) -> tuple[int, ...]:
        """Add a sample's loss at each exit in use, in nats; return the positions of the exits whose loss has risen."""
        risen = [exit.update(loss) for exit, loss in zip(self._exits, losses, strict=True)]
        return tuple(position for position, has_risen in enumerate(risen) if has_risen)


class _WatchedExit:
    """The detector of one exit, and the scale of its losses: both follow from the losses of the past.

    ADWIN and Page-Hinkley are given that past first, as what they compare with.
    """

    def __init__(self, settings: DriftSettings, validated: Sequence[float]) -> None:
        self._settings = settings
        self._detector: Detector | None = None
        self._past: list[float] = []
        if validated:
            self._begin(validated)

    def update(self, loss: float) -> bool:
        """Add a loss, in nats, and return whether the loss has risen."""
        if self._detector is not None:
            return self._detector.update(self._measured(loss))
        self._past.append(loss)
        if len(self._past) == FIRST_LOSSES:
            self._begin(self._past)
        return False

    def _begin(self, past: Sequence[float]) -> None:
        self._cap = max(LEAST_CAP, CAP_MEANS * statistics.fmean(past))
        self._spread = max(statistics.pstdev(min(loss, self._cap) for loss in past), LEAST_SPREAD)
        # where the mean is far above its spread, ADWIN's range has to begin above 0
        self._base = max(statistics.fmean(min(loss, self._cap) for loss in past) - self._spread, 0.0)
        measured = [self._measured(loss) for loss in past]
        if self._settings.rule == "plain":
            self._detector = PlainRule(self._settings, statistics.fmean(measured))
            return
        self._detector = (
            AdwinDetector(self._settings) if self._settings.rule == "adwin" else PageHinkleyDetector(self._settings)
        )
        for loss in measured:
            self._detector.update(loss)

    def _measured(self, loss: float) -> float:
        return (min(loss, self._cap) - self._base) / self._spread
