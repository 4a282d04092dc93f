"""The figures of docs/performance.md."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from persephonee.benchmarks.inference.report import exit_name
from persephonee.benchmarks.page.numbers import rates, way_costs
from persephonee.benchmarks.page.sections import WAY_NAMES
from persephonee.benchmarks.result_tables import Result
from persephonee.benchmarks.simulation.scaling import straight_line
from persephonee.server.report.figure_style import (
    AFTER,
    BEFORE,
    FRONT,
    ORIGINAL,
    PAPER,
    figure_style,
    new_figure,
    save_figure,
)

COLOURS = {"whole": ORIGINAL, "paper": BEFORE, "cached": AFTER, "fast": FRONT}


def draw_costs(result: Result, folder: Path, name: str) -> None:
    """Draw time and memory of every way."""
    costs = way_costs(result)
    labels = [
        WAY_NAMES[method] if method == "whole" else f"{WAY_NAMES[method]}, {exits}"
        for method, exits in zip(costs.way, costs.exits, strict=True)
    ]
    y, colours = np.arange(len(costs))[::-1], [COLOURS[method] for method in costs.way]
    with figure_style():
        figure = new_figure()
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(y, costs.seconds, color=colours)
        left.hlines(y, costs.low, costs.high, color="0.5", linewidth=2)
        marker = {"markerfacecolor": PAPER, "markeredgecolor": ORIGINAL, "markersize": 7}
        left.plot(costs.limit_seconds, y, "d", label="arithmetic limit", **marker)
        _log(left, "seconds a user")
        left.set_yticks(y, labels)
        figure.legend(loc="outside lower center")
        right.barh(y, costs.own_bytes / 1e6, color=colours)
        right.set_xlabel("own peak memory, MB")
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
        save_figure(figure, folder, name)


def draw_simulation(result: Result, folder: Path, name: str) -> None:
    """Draw each baseline's clients per second."""
    table = rates(result)
    labels = [
        f"{row.name}, {row.head}, {row.schedule}, {row.clients}" for row in table.itertuples(index=False, name="Row")
    ]
    y = np.arange(len(table))[::-1]
    ours = table.name.str.startswith("persephonee")
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        axes.barh(y, table.rate, color=[FRONT if own else BEFORE for own in ours])
        axes.hlines(y, table.low, table.high, color="0.5", linewidth=2)
        axes.set_yticks(y, labels)
        axes.set_xlabel("clients a second, without the start")
        axes.grid(visible=False, axis="y")
        save_figure(figure, folder, name)


def draw_scaling(result: Result, folder: Path, name: str) -> None:
    """Draw the seconds against each size, and the straight line."""
    table = result.tables["seconds"]
    kinds = list(dict.fromkeys(table.kind))
    with figure_style():
        figure = new_figure()
        for axes, kind in zip(figure.subplots(1, len(kinds)), kinds, strict=True):
            of = table[table.kind == kind]
            medians = of.groupby("size").seconds.median()
            sizes = medians.index.to_numpy(float)
            slope, intercept, _ = straight_line(sizes, medians.to_numpy())
            ends = np.array([0.0, sizes.max()])
            axes.plot(ends, slope * ends + intercept, color=ORIGINAL, linewidth=1, linestyle=":")
            axes.plot(of["size"], of.seconds, ".", color=AFTER, alpha=0.4)
            axes.plot(sizes, medians, "o", color=AFTER)
            axes.set(xlabel=kind, xlim=(0, None), ylim=(0, None))
            if kind == kinds[0]:
                axes.set_ylabel("seconds")
        save_figure(figure, folder, name)


def draw_latency(result: Result, folder: Path, name: str) -> None:
    """Draw latency against MACs per exit, as Fig. 6b."""
    table = result.tables["latency"]
    slope, intercept = np.polyfit(table.mmac, table.latency_ms, 1)
    ends = np.array([0.0, table.mmac.max()])
    with figure_style():
        figure = new_figure(0.75)
        axes = figure.subplots()
        axes.plot(ends, slope * ends + intercept, color=ORIGINAL, linewidth=1, linestyle=":")
        axes.plot(table.mmac, table.latency_ms, "o", color=AFTER)
        for exit, x, y in zip(table.exit, table.mmac, table.latency_ms, strict=True):
            axes.annotate(exit_name(int(exit), len(table)), (x, y), (5, -9), textcoords="offset points", fontsize=8.5)
        axes.set(xlabel="MMAC, backbone and own head", ylabel="median latency, ms")
        axes.set(xlim=(0, 1.12 * ends[1]), ylim=(0, None))
        save_figure(figure, folder, name)


def _log(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel(label)
