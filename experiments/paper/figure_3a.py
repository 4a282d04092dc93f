"""Fig. 3a: accuracy per exit, before and after personalisation, with labels and without, over users."""

from typing import Any

from persephonee.experiments.studies.figure_results import (
    COLOURS,
    PAPER_ORIGINAL,
    Claim,
    FigureResult,
    exit_means,
    first_reaching,
    named,
    original_accuracy,
)
from persephonee.experiments.studies.measurements import Measured
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 3a: accuracy per exit"
STUDIES = ("resnet50", "mobilenet_v2")
PAPER = {"before": {0: 0.16, 5: 0.7495}, "hard labels": {1: PAPER_ORIGINAL, 5: 0.909}, "self-distillation": {2: 0.7496}}
"""Accuracies that the paper states, by exit."""


def draw(measured: Measured) -> FigureResult:
    """Draw mean and quartiles of each scheme; the paper's values as hollow diamonds."""
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        early = measured.network.num_exits
        means = {name: exit_means(measured, name) for name in measured.study.schemes}
        drawn = {"before": (means["hard labels"], "before"), **{name: (t, "after") for name, t in means.items()}}
        for place, (name, (table, stage)) in enumerate(drawn.items()):
            table = table.iloc[:early]
            x = table.index + 0.07 * (place - 1.5)
            spread = [table[stage] - table[f"{stage}_p25"], table[f"{stage}_p75"] - table[stage]]
            style: dict[str, Any] = {
                "marker": "o",
                "markersize": 4,
                "capsize": 2.5,
                "linewidth": 1.5,
                "elinewidth": 0.9,
            }
            axes.errorbar(
                x, table[stage], yerr=[e.clip(lower=0) for e in spread], color=COLOURS[name], label=name, **style
            )
        axes.axhline(original_accuracy(measured), color=COLOURS["original"], linewidth=1.2, label="original, last exit")
        for name, values in PAPER.items():
            shown = {exit: value for exit, value in values.items() if exit < max(early, 6)}
            axes.plot(list(shown), list(shown.values()), "D", mfc="none", mec=COLOURS[name], markersize=7)
        axes.axhline(
            PAPER_ORIGINAL, color=COLOURS["original"], linewidth=0.8, linestyle=":", label="original in the paper"
        )
        axes.plot([], [], "D", mfc="none", mec=COLOURS["original"], label="paper, ResNet-50 on ImageNet")
        axes.set(xlabel="exit", ylabel="accuracy (mean, quartiles of users)", ylim=(0, 1))
        axes.set_xticks(range(max(early, 6)))
        figure.suptitle(measured.study.title, fontsize=10.5)
        figure.legend(loc="outside right center")
    numbers = measured.exits[measured.exits.whole].groupby(["scheme", "exit"])[["before", "after"]].describe()
    numbers.columns = ["_".join(names) for names in numbers.columns]
    return FigureResult(figure=figure, numbers=numbers.reset_index(), claims=claims(measured))


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Return what the paper says of the figure, and what we find."""
    original = original_accuracy(measured)
    labels, distilled = exit_means(measured, "hard labels"), exit_means(measured, "self-distillation")
    deepest = measured.network.num_exits - 1
    before = first_reaching(labels.before, original)
    after = {name: first_reaching(table.after, original) for name, table in (("l", labels), ("d", distilled))}

    def earlier(exit: int | None) -> bool:
        return exit is not None and (before is None or exit < before or exit == 0)

    shallow, deep = labels.before[0], labels.before[deepest]
    gain = labels.after[deepest] - original
    return (
        Claim(
            claim="accuracy rises from the first to the deepest early exit, before personalisation",
            paper="16% to 74.95%, original 74.96%",
            ours=f"{shallow:.1%} to {deep:.1%}, original {original:.1%}",
            same_direction=bool(shallow < deep),
        ),
        Claim(
            claim="first exit that reaches the original, hard labels",
            paper="exit 1",
            ours=f"{named(after['l'])} (before: {named(before)})",
            same_direction=earlier(after["l"]),
        ),
        Claim(
            claim="first exit that reaches the original, self-distillation",
            paper="exit 2",
            ours=f"{named(after['d'])} (before: {named(before)})",
            same_direction=earlier(after["d"]),
        ),
        Claim(
            claim="deepest early exit against the original, hard labels",
            paper="90.9%, +15.9 points",
            ours=f"{labels.after[deepest]:.1%}, {100 * gain:+.1f} points; it began at {deep:.1%}",
            same_direction=bool(gain > 0),
        ),
    )
