"""What a check found, and what to do about it."""

from dataclasses import dataclass

OK, WARNING, WRONG = "ok", "warning", "wrong"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that `persephonee device doctor` looked at."""

    check: str
    """What was looked at, in a word or two."""
    level: str
    """ok, warning (works, perhaps badly) or wrong (will not work)."""
    found: str
    remedy: str = ""
    """What to do; empty where all is well."""


def ok(check: str, found: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(check=check, level=OK, found=found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Return a finding about what works, perhaps badly."""
    return Finding(check=check, level=WARNING, found=found, remedy=remedy)


def wrong(check: str, found: str, remedy: str) -> Finding:
    """Return a finding about what will not work."""
    return Finding(check=check, level=WRONG, found=found, remedy=remedy)
