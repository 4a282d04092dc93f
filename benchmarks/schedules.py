"""The schedules of a personalisation round that the benchmarks compare."""

from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule

PAPER: Schedule = "paper"
FAST: Schedule = "fast"
SCHEDULES = (PAPER, FAST)


def schedule_settings(schedule: Schedule, epochs: int = 10) -> PersonalisationSettings:
    """Return the settings of a round with this schedule; `epochs` are the paper's."""
    return PersonalisationSettings(schedule=schedule, epochs=epochs)
