"""The schedules of a personalisation round that the benchmarks compare."""

from persephonee.clients.personalisation.settings import PersonalisationSettings

PAPER, FAST = "paper", "fast"
SCHEDULES = (PAPER, FAST)


def schedule_settings(schedule: str, epochs: int = 10) -> PersonalisationSettings:
    """Return the settings of a round with this schedule; `epochs` are the paper's."""
    return PersonalisationSettings(schedule=schedule, epochs=epochs)
