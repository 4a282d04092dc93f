"""What a device reports is rounded, so that what one sample changes is lost in a step, whoever chose what is measured.

A mean over n samples in full says a lot: exits can be made so that the digits of a loss spell out a label histogram, or
one image's features, and two means that differ by one sample tell that sample. Rounded to steps of 2 / n or more, and
with the loss cut off, a figure has at most a hundred values, which of one sample tell next to nothing.
"""

import math
from dataclasses import replace

from persephonee.clients.personalisation.reports import ExitMetrics, PersonalisationReport

STEPS = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Of an accuracy or an exit rate: the smallest one in which two samples are lost."""

LARGEST_LOSS = 10.0
"""In nats; a loss above it is reported as this."""

LOSS_STEPS = 5.0
"""A loss is rounded to so many times the step of an accuracy, in nats."""


def step_for(num_test: int) -> float:
    """Return the step that fractions over so many samples are rounded to; for 100 samples 0.02, for 6 it is 0.5."""
    return next((step for step in STEPS if step * num_test >= 2), STEPS[-1])


def coarse_report(report: PersonalisationReport) -> PersonalisationReport:
    """Return a report with its figures rounded as the size of its test part demands; what is missing stays NaN."""
    step = step_for(report.num_test)
    macs_step = max(step * report.original_macs, 1.0)
    return replace(
        report,
        accuracy_original=_rounded(report.accuracy_original, step),
        accuracy_before=_rounded(report.accuracy_before, step),
        accuracy_after=_rounded(report.accuracy_after, step),
        # a sum over the exit rates, which it would give away
        mean_macs=_rounded(report.mean_macs, macs_step),
        mean_macs_before=_rounded(report.mean_macs_before, macs_step),
        seconds_personalise=_rounded(report.seconds_personalise, 1.0),
        exit_metrics=tuple(coarse_exit(metrics, step) for metrics in report.exit_metrics),
    )


def coarse_exit(metrics: ExitMetrics, step: float) -> ExitMetrics:
    """Return an exit's figures, rounded to a step of `step_for`."""
    loss = min(metrics.loss, LARGEST_LOSS) if metrics.loss == metrics.loss else LARGEST_LOSS
    return replace(
        metrics,
        accuracy=_rounded(metrics.accuracy, step),
        exit_rate=_rounded(metrics.exit_rate, step),
        loss=_rounded(loss, LOSS_STEPS * step),
    )


def _rounded(value: float, step: float) -> float:
    # again to twelve digits: 3 * 0.1 is not 0.3
    return value if math.isnan(value) else round(round(value / step) * step, 12)
