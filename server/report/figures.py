"""The figures of the report: one function per figure, each from the rows of one round and their summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from persephonee.server.report.figure_style import AFTER, BEFORE, FRONT, ORIGINAL, PAPER, new_figure
from persephonee.server.results.summary import ExitSummary, Summary
from persephonee.server.results.table_schemas import Row

STAGE_COLOURS = {"before": BEFORE, "after": AFTER}
ONE_USER: dict[str, Any] = {
    "color": AFTER,
    "marker": "o",
    "markersize": 3,
    "markeredgewidth": 0,
    "alpha": 0.25,
    "linestyle": "none",
    "zorder": 1.5,
    "label": "one user's policy after",
}
WIDTH = 0.34  # of a box or a bar; an exit has two of them and takes 1


@dataclass(frozen=True, kw_only=True)
class RoundRows:
    """The rows of one round that the figures are drawn from."""

    exits: Sequence[Row]
    """Rows of exits.parquet."""
    users: Sequence[Row]
    """Rows of clients.parquet whose status is "ok"."""

    def accuracies(self, exit_number: int, stage: str) -> list[float]:
        """Return the users' accuracies at one exit, in [0, 1]."""
        rows = (row for row in self.exits if row["exit"] == exit_number and row["stage"] == stage)
        return [row["accuracy"] for row in rows if row["accuracy"] is not None]

    def of_users(self, column: str) -> list[float]:
        """Return one column of the users, without nulls."""
        return [row[column] for row in self.users if row[column] is not None]


def draw_accuracy_per_exit(rows: RoundRows, summary: Summary) -> Figure:
    """Draw boxes of the users' accuracy per exit, before and after, with the original's mean as a line."""
    figure = new_figure()
    axes = figure.subplots()
    for entry in summary.exits:
        if entry.is_last:
            _draw_box(axes, rows.accuracies(entry.exit, "after"), entry.exit, ORIGINAL)
            continue
        for stage, offset in (("before", -0.21), ("after", 0.21)):
            _draw_box(axes, rows.accuracies(entry.exit, stage), entry.exit + offset, STAGE_COLOURS[stage])
    original = summary.policy.accuracy_original
    if original:
        axes.axhline(original.mean, color=ORIGINAL, linestyle="--", linewidth=1.2, zorder=1)
    for label, colour in (("before", BEFORE), ("after", AFTER), ("original network", ORIGINAL)):
        axes.plot([], [], color=colour, linewidth=6, alpha=0.6, label=label)
    axes.plot([], [], color=ORIGINAL, linestyle="--", linewidth=1.2, label="original, mean over users")
    _label_exits(axes, summary)
    _accuracy_axis(axes.yaxis, axes, "accuracy on the user's test samples")
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def draw_users_over_accuracy(rows: RoundRows, summary: Summary) -> Figure:
    """Draw the cumulative fraction of users over accuracy, as Fig. 3b of the paper."""
    figure = new_figure()
    axes = figure.subplots()
    curves = [
        ("exit 0 before", rows.accuracies(0, "before"), BEFORE, ":", 1.6),
        ("exit 0 after", rows.accuracies(0, "after"), AFTER, ":", 1.6),
        ("policy before", rows.of_users("accuracy_before"), BEFORE, "-", 2.0),
        ("policy after", rows.of_users("accuracy_after"), AFTER, "-", 2.0),
        ("original network", rows.of_users("accuracy_original"), ORIGINAL, "--", 1.4),
    ]
    for label, values, colour, line, width in curves:
        if values:
            axes.ecdf(values, label=label, color=colour, linestyle=line, linewidth=width)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_ylabel("users with at most this accuracy")
    _accuracy_axis(axes.xaxis, axes, "accuracy on the user's test samples")
    # a single poor user at exit 0 would squeeze everybody else into the right edge
    lowest = min((float(np.percentile(values, 1)) for _, values, *_ in curves if values), default=0.0)
    axes.set_xlim(max(0.0, lowest - 0.02), 1.005)
    figure.legend(loc="outside upper left", ncols=5)
    return figure


def draw_accuracy_against_cost(rows: RoundRows, summary: Summary) -> Figure:
    """Draw mean accuracy against cost: each exit before and after, both policies, the original, and the front."""
    figure = new_figure()
    axes = figure.subplots()
    users = [(row["mean_macs"] / row["original_macs"], row["accuracy_after"]) for row in rows.users if _has_point(row)]
    points = _draw_exit_lines(axes, summary)
    points += _draw_operating_points(axes, summary)
    front = pareto_front(points)
    if front:
        look: dict[str, Any] = {"color": FRONT, "linewidth": 4.5, "alpha": 0.35, "zorder": 1, "label": "front"}
        axes.step([cost for cost, _ in front], [accuracy for _, accuracy in front], where="post", **look)
    axes.plot([cost for cost, _ in users], [accuracy for _, accuracy in users], **ONE_USER)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    macs = summary.policy.original_macs
    axes.set_xlabel(
        f"MACs per sample, fraction of the original network's {macs / 1e6:,.1f} million" if macs else "MACs"
    )
    axes.set_xlim(left=0)
    _accuracy_axis(axes.yaxis, axes, "accuracy, mean over users")
    _limit_to(axes, [accuracy for _, accuracy in points], users)
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def draw_exit_rates(rows: RoundRows, summary: Summary) -> Figure:
    """Draw the mean fraction of samples that leave at each exit under the policy, before and after."""
    figure = new_figure()
    axes = figure.subplots()
    for stage, offset in (("before", -0.19), ("after", 0.19)):
        rates = [
            (entry.exit_rate_before if stage == "before" else entry.exit_rate_after) or 0 for entry in summary.exits
        ]
        paths = np.arange(len(rates)) + offset
        bars = axes.bar(paths, rates, width=WIDTH, color=STAGE_COLOURS[stage], label=stage)
        axes.bar_label(bars, labels=[f"{100 * rate:.0f}" for rate in rates], padding=2, fontsize=8, color=ORIGINAL)
    _label_exits(axes, summary, kept=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_ylabel("samples that leave here, mean over users")
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def draw_rounds(summary: Summary) -> Figure:
    """Draw accuracy and cost under the policy over the rounds."""
    figure = new_figure()
    accuracy, cost = figure.subplots(1, 2)
    numbers = [point.round for point in summary.rounds]
    lines = (("policy before", "accuracy_before", BEFORE), ("policy after", "accuracy_after", AFTER))
    for label, field, colour in (*lines, ("original network", "accuracy_original", ORIGINAL)):
        style = "--" if colour == ORIGINAL else "o-"
        accuracy.plot(numbers, _floats(summary, field), style, color=colour, markersize=4, label=label)
    cost.plot(numbers, _floats(summary, "cost_fraction"), "o-", color=AFTER, markersize=4)
    cost.margins(y=0.12)
    cost.set_ylim(bottom=0)
    cost.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    cost.set_ylabel("MACs per sample, fraction of the original's")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    accuracy.set_ylabel("accuracy, mean over users")
    for axes in (accuracy, cost):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (cost, accuracy) points that no other beats in both, by rising cost.

    Of points with the same cost and accuracy one is returned.
    """
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def _draw_box(axes: Axes, values: list[float], place: float, colour: str) -> None:
    """Draw a box from the 25th to the 75th percentile with the median, whiskers from the 5th to the 95th."""
    if not values:
        return
    parts = axes.boxplot(
        [values],
        positions=[place],
        widths=WIDTH,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.6},
        medianprops={"color": PAPER, "linewidth": 1.6},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )
    for line in parts["medians"]:
        line.set_solid_capstyle("butt")


def _draw_exit_lines(axes: Axes, summary: Summary) -> list[tuple[float, float]]:
    early = [entry for entry in summary.exits if not entry.is_last and entry.cost_fraction is not None]
    drawn: list[tuple[float, float]] = []
    for stage in ("before", "after"):
        points = [(entry.cost_fraction or 0.0, _mean_accuracy(entry, stage)) for entry in early]
        known = [(cost, accuracy) for cost, accuracy in points if accuracy is not None]
        if known:
            costs, accuracies = [cost for cost, _ in known], [accuracy for _, accuracy in known]
            look: dict[str, Any] = {"color": STAGE_COLOURS[stage], "linewidth": 1.4, "markersize": 5}
            axes.plot(costs, accuracies, "o-", label=f"exits {stage}", **look)
        drawn += known
    for entry in early:
        accuracy = _mean_accuracy(entry, "after")
        if accuracy is not None:
            place = (entry.cost_fraction or 0.0, accuracy)
            axes.annotate(str(entry.exit), place, (0, -14), textcoords="offset points", ha="center", color=AFTER)
    return drawn


def _draw_operating_points(axes: Axes, summary: Summary) -> list[tuple[float, float]]:
    policy = summary.policy
    marks = (
        ("policy before", policy.cost_fraction_before, policy.accuracy_before, BEFORE, "D"),
        ("policy after", policy.cost_fraction_after, policy.accuracy_after, AFTER, "D"),
    )
    points = []
    for label, cost, accuracy, colour, marker in marks:
        if cost and accuracy:
            points.append((cost.mean, accuracy.mean))
            look: dict[str, Any] = {"s": 75, "color": colour, "edgecolor": ORIGINAL, "linewidth": 1.2, "zorder": 4}
            axes.scatter(cost.mean, accuracy.mean, marker=marker, label=label, **look)
    if policy.accuracy_original:
        points.append((1.0, policy.accuracy_original.mean))
        axes.scatter(1.0, policy.accuracy_original.mean, s=110, marker="*", color=ORIGINAL, label="original", zorder=4)
    return points


def _label_exits(axes: Axes, summary: Summary, kept: bool = False) -> None:
    labels = []
    for entry in summary.exits:
        name = "last exit" if entry.is_last else f"exit {entry.exit}"
        detail = "" if entry.cost_fraction is None else f"{100 * entry.cost_fraction:.0f} % MACs"
        if kept and not entry.is_last and entry.kept is not None:
            detail += f"\nkept {100 * entry.kept:.0f} %"
        labels.append(f"{name}\n{detail}")
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0, labelsize=8.5)


def _accuracy_axis(axis: Any, axes: Axes, label: str) -> None:
    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axis.set_label_text(label)


def _limit_to(axes: Axes, accuracies: list[float], users: list[tuple[float, float]]) -> None:
    lowest = min([*accuracies, *(accuracy for _, accuracy in users)], default=0.0)
    axes.set_ylim(max(-0.01, lowest - 0.03), 1.01)


def _mean_accuracy(entry: ExitSummary, stage: str) -> float | None:
    spread = entry.accuracy_before if stage == "before" else entry.accuracy_after
    return spread.mean if spread else None


def _has_point(row: Mapping[str, Any]) -> bool:
    return row["accuracy_after"] is not None and row["mean_macs"] is not None and bool(row["original_macs"])


def _floats(summary: Summary, field: str) -> list[float]:
    values = (getattr(point, field) for point in summary.rounds)
    return [float("nan") if value is None else value for value in values]
