"""The schedules of a personalisation round that the benchmarks compare."""

from dataclasses import fields

from clients.settings import PersonalisationSettings

PAPER, FAST = "paper", "fast"


def available() -> tuple[str, ...]:
    """Return the schedules that the on-device pipeline knows, the paper's first."""
    known = {field.name for field in fields(PersonalisationSettings)}
    return (PAPER, FAST) if "schedule" in known else (PAPER,)


def schedule_settings(schedule: str, epochs: int = 10) -> PersonalisationSettings:
    """Return the settings of a round with this schedule; `epochs` are the paper's."""
    return (
        PersonalisationSettings(epochs=epochs)
        if schedule == PAPER
        else PersonalisationSettings(**{"schedule": schedule})  # type: ignore[arg-type]
    )
