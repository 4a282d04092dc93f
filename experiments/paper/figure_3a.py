"""Fig. 3a: accuracy per exit, before and after personalisation, with labels and without, over users."""

from typing import Any

from persephonee.experiments.studies.figure_results import (
    COLOURS,
    PAPER_ORIGINAL,
    Claim,
    FigureResult,
    judge,
    named,
    shown_name,
)
from persephonee.experiments.studies.gains import (
    ExitGain,
    exit_gains,
    exit_means,
    first_reaching,
    in_points,
    original_accuracy,
)
from persephonee.experiments.studies.measurements import Measured
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 3a: accuracy per exit"
NOTE = """\
Each exit stands alone, as training left it, without a guard and without a policy: so the paper reads its figure. The
exits learnt from 100 photographs a class, the paper's from ImageNet's 1,300, so that ours begin further below the
original. The class frequencies, which the paper does not have, need neither labels nor training.
"""
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
                x,
                table[stage],
                yerr=[e.clip(lower=0) for e in spread],
                color=COLOURS[name],
                label=shown_name(name),
                **style,
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
    numbers = measured.exits[measured.exits.whole].groupby(["scheme", "exit"])[["before", "unguarded"]].describe()
    numbers.columns = ["_".join(names) for names in numbers.columns]
    return FigureResult(figure=figure, numbers=numbers.reset_index(), claims=claims(measured))


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Return what the paper says of the figure, and what we find."""
    labels, distilled, frequencies = (
        exit_gains(measured, scheme) for scheme in ("hard labels", "self-distillation", "frequencies")
    )
    before = exit_gains(measured, "hard labels", "before")
    means, original = exit_means(measured, "hard labels").before, original_accuracy(measured)
    shallow, deep = means.iloc[0], means.iloc[-2]
    return (
        Claim(
            claim="accuracy rises from the first to the deepest early exit, before personalisation",
            paper="16% to 74.95%, original 74.96%",
            ours=f"{shallow:.1%} to {deep:.1%}, original {original:.1%}",
            verdict=judge(same_direction=bool(shallow < deep), as_far=before[-1].reaches()),
        ),
        _first("hard labels", labels, before, 1, "exit 1"),
        _first("self-distillation, no labels", distilled, before, 2, "exit 2"),
        _first("class frequencies alone, no labels", frequencies, before, 2, "exit 2 (by self-distillation)"),
        _deepest("hard labels", labels, 15.9, "+15.9 points"),
        _deepest("class frequencies alone, no labels", frequencies, None, "not in the paper"),
    )


def _first(name: str, after: tuple[ExitGain, ...], before: tuple[ExitGain, ...], paper: int, said: str) -> Claim:
    reached, untrained = first_reaching(after), first_reaching(before)
    earlier = reached is not None and (untrained is None or reached.exit <= untrained.exit)
    gain = "" if reached is None else f", {in_points(reached.points)}"
    return Claim(
        claim=f"first exit that reaches the original, {name}",
        paper=said,
        ours=f"{named(None if reached is None else reached.exit)}{gain}",
        verdict=judge(same_direction=earlier, as_far=reached is not None and reached.exit <= paper),
    )


def _deepest(name: str, after: tuple[ExitGain, ...], paper: float | None, said: str) -> Claim:
    points = after[-1].points
    return Claim(
        claim=f"deepest early exit against the original, {name}",
        paper=said,
        ours=in_points(points),
        verdict=None if paper is None else judge(same_direction=points.high >= 0, as_far=points.high >= paper),
    )
