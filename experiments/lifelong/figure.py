"""The picture of lives: accuracy, exits, cost, latency and threshold over time, with the phases as coloured bands."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from persephonee.experiments.lifelong.device_life import LifeRecord
from persephonee.experiments.lifelong.streams import SAMPLES_PER_DAY
from persephonee.server.report.figure_style import AFTER, BEFORE, FRONT, GRID, ORIGINAL, PAPER, figure_style

COLOURS = {"never personalised": BEFORE, "personalised once": FRONT, "orchestrated": AFTER}
WINDOW = 60
"""Samples over which the curves are averaged, on each device, looking back."""

NOTICED = ("drift", "exit rates collapsed")
INFERENCE, WAITING, ROUND = "#e8eef4", "#e69f00", "#cc79a7"

Lives = Mapping[str, Sequence[LifeRecord]]
"""The same streams under each strategy."""


def draw_lives(lives: Lives, originals: Sequence[NDArray[np.bool_]], title: str) -> Figure:
    """Return the figure: a column for each strategy, devices averaged, the shift as a dashed line.

    Args:
        lives: by strategy.
        originals: for each stream, whether the last exit alone is right.
        title: what was lived through.
    """
    with figure_style():
        figure = Figure(figsize=(11.0, 9.4), layout="constrained")
        heights = [0.28 + 0.09 * len(originals), 1.25, 1.25, 0.9, 0.9, 0.9]
        axes = figure.subplots(6, len(lives), sharex=True, sharey="row", height_ratios=heights, squeeze=False)
        last = max(record.num_exits for records in lives.values() for record in records)
        for column, (strategy, records) in enumerate(lives.items()):
            _bands(axes[0, column], records)
            axes[0, column].set_title(strategy, color=COLOURS[strategy], fontweight="bold")
            _accuracy(axes[1, column], records, originals, COLOURS[strategy])
            _exit_rates(axes[2, column], records, last)
            _curve(axes[3, column], [record.cost for record in records], COLOURS[strategy])
            _curve(axes[4, column], [_median(record.latency_ms) for record in records], COLOURS[strategy], window=1)
            _curve(axes[5, column], [record.thresholds for record in records], COLOURS[strategy], window=1)
            for axis in axes[:, column]:
                axis.axvline(_shift_day(records), color=ORIGINAL, linestyle="--", linewidth=0.9)
            axes[5, column].set_xlabel("days")
        names = (
            "devices",
            "accuracy",
            "fraction of samples\nby exit",
            "cost / original",
            "median\nlatency (ms)",
            "threshold",
        )
        for axis, name in zip(axes[:, 0], names, strict=True):
            axis.set_ylabel(name)
        axes[3, 0].set_ylim(0, 1.25)
        axes[4, 0].set_ylim(bottom=0)
        axes[5, 0].set_ylim(0, 1.05)
        axes[1, 0].legend(loc="lower left", fontsize=8, frameon=True, facecolor=PAPER, edgecolor="none", framealpha=0.9)
        handles, labels = axes[2, -1].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=8)
        patches = (
            Patch(color=INFERENCE, label="inference, a fraction of it explored"),
            Line2D([], [], marker="v", color=WAITING, linestyle="", label="shift noticed (rightly or not)"),
            Patch(color=WAITING, label="waiting for the charger"),
            Patch(color=ROUND, label="personalisation by night"),
        )
        figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8.5)
        figure.suptitle(title, fontsize=11)
        return figure


def _bands(axis: Axes, records: Sequence[LifeRecord]) -> None:
    """Draw a band for each device: what it does on each day."""
    for row, record in enumerate(records):
        days = np.arange(len(record.asked)) / SAMPLES_PER_DAY
        axis.broken_barh([(0, float(days[-1]))], (row - 0.35, 0.7), color=INFERENCE)
        for begin, end in _stretches(record.asked):
            axis.broken_barh(
                [(begin / SAMPLES_PER_DAY, (end - begin) / SAMPLES_PER_DAY)], (row - 0.35, 0.7), color=WAITING
            )
        for place in record.rounds:
            axis.broken_barh([(place / SAMPLES_PER_DAY - 0.9, 1.8)], (row - 0.35, 0.7), color=ROUND)
        # a night is too short a wait to be seen as a band
        noticed = [event.details["frame"] / SAMPLES_PER_DAY for event in record.events if event.kind in NOTICED]
        # scatter, since the layout takes an empty line that is not clipped to lie at the figure's corner
        axis.scatter(noticed, [row - 0.45] * len(noticed), marker="v", color=WAITING, s=25, zorder=3, clip_on=False)
    axis.set_ylim(len(records) - 0.5, -0.75)
    axis.set_yticks([])
    axis.grid(visible=False)


def _stretches(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int64), [0]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _accuracy(axis: Axes, records: Sequence[LifeRecord], originals: Sequence[NDArray[np.bool_]], colour: str) -> None:
    _curve(axis, list(originals), ORIGINAL, label="the last exit alone", linewidth=1.2, linestyle=":")
    _curve(axis, [record.correct for record in records], colour, label="the device")


def _exit_rates(axis: Axes, records: Sequence[LifeRecord], last: int) -> None:
    length = min(len(record.exits) for record in records)
    shares = [
        _mean([(record.exits[:length] == exit).astype(np.float64) for record in records]) for exit in range(last + 1)
    ]
    scale = LinearSegmentedColormap.from_list("exits", ["#cfe8dc", FRONT, "#1b4a63", "#222222"])
    colours = [scale(exit / max(last, 1)) for exit in range(last + 1)]
    labels = [*(f"exit {exit}" for exit in range(last)), "last"]
    axis.stackplot(np.arange(length) / SAMPLES_PER_DAY, shares, colors=colours, labels=labels, linewidth=0)
    axis.set_ylim(0, 1)


def _curve(axis: Axes, values: Sequence[NDArray[Any]], colour: str, window: int = WINDOW, **style: Any) -> None:
    length = min(map(len, values))
    mean = _mean([each[:length].astype(np.float64) for each in values], window)
    # the mean of a few samples says nothing
    mean[: WINDOW // 3] = np.nan
    axis.plot(np.arange(length) / SAMPLES_PER_DAY, mean, color=colour, **{"linewidth": 1.6, **style})
    axis.grid(visible=True, color=GRID)


def _mean(values: Sequence[NDArray[np.float64]], window: int = WINDOW) -> NDArray[np.float64]:
    """Return the devices' mean, each averaged over the last `window` samples that have a value."""
    smooth = []
    for each in values:
        known = np.isfinite(each)
        ends = np.arange(1, len(each) + 1)
        begins = np.maximum(ends - window, 0)
        sums = np.concatenate([[0.0], np.cumsum(np.where(known, each, 0.0))])
        counts = np.concatenate([[0], np.cumsum(known)])
        smooth.append((sums[ends] - sums[begins]) / np.maximum(counts[ends] - counts[begins], 1))
    return np.asarray(np.mean(smooth, axis=0))


def _median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median over the last `WINDOW` samples that have a value: other work on the machine makes outliers."""
    windows = (values[max(i + 1 - WINDOW, 0) : i + 1] for i in range(len(values)))
    known = (window[np.isfinite(window)] for window in windows)
    return np.array([np.median(window) if len(window) else np.nan for window in known])


def _shift_day(records: Sequence[LifeRecord]) -> float:
    return float(np.mean([record.stream.shift for record in records])) / SAMPLES_PER_DAY
