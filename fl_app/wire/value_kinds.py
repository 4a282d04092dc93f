"""The kinds of value that a wire record may hold; see wire.py for the records themselves."""

import math
from dataclasses import dataclass
from typing import Any

from persephonee.fl_app.wire.limits import MAX_EXITS


@dataclass(frozen=True, kw_only=True)
class Text:
    """A printable string of at most `length` characters."""

    length: int

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with `value`, None when it may travel."""
        if not isinstance(value, str):
            return f"a string, got {type(value).__name__}"
        if len(value) > self.length or not value.isprintable():
            return f"at most {self.length} printable characters, got {len(value)}"
        return None


@dataclass(frozen=True, kw_only=True)
class Truth:
    """True or False."""

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with `value`, None when it may travel."""
        return None if isinstance(value, bool) else f"true or false, got {type(value).__name__}"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole number in [low, high]."""

    low: int = 0
    high: int = 2**53

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with `value`, None when it may travel."""
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            return f"a whole number in [{self.low}, {self.high}], got {shown(value)}"
        return None


@dataclass(frozen=True, kw_only=True)
class Number:
    """A float in [low, high], or NaN where there is none."""

    low: float = 0.0
    high: float = 1.0

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with `value`, None when it may travel."""
        if not isinstance(value, float) or not (math.isnan(value) or self.low <= value <= self.high):
            return f"a number in [{self.low:g}, {self.high:g}], got {shown(value)}"
        return None


@dataclass(frozen=True, kw_only=True)
class PerExit:
    """A list of numbers in [low, high] or NaN, one per exit."""

    low: float = 0.0
    high: float = 1.0

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with `value`, None when it may travel."""
        if not isinstance(value, list) or not 2 <= len(value) <= MAX_EXITS:
            return f"a list of 2 to {MAX_EXITS} numbers, got {shown(value)}"
        number = Number(low=self.low, high=self.high)
        return next((complaint for item in value if (complaint := number.complaint(item))), None)


Kind = Text | Truth | Whole | Number | PerExit


def shown(value: Any) -> str:
    """Return a value for an error message, cut short."""
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | bytes) else repr(value)[:40]
