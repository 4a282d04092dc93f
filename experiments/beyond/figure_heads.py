"""Beyond the paper: `pooled` heads beside `msdnet` heads on the same frozen backbone."""

from dataclasses import replace
from typing import Any

import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, shown_name
from persephonee.experiments.studies.gains import exit_means, original_accuracy
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.studies import Study
from persephonee.multi_exit.settings import HeadKind
from persephonee.server.report.figure_style import figure_style, new_figure, shared_legend

TITLE = "Two kinds of heads"
NOTE = """\
The paper's heads (`msdnet`) have convolutions of their own; `pooled` ones have a single linear layer on averaged
features, which costs next to nothing. Each exit alone, means over users.
"""
STUDIES = ("mobilenet_v2",)
SCHEMES = ("hard labels", "frequencies")
STYLES = {"msdnet": "o-", "pooled": "s--"}


def variants(study: Study) -> dict[str, Study]:
    """Return the study with the other kind of heads."""
    other: HeadKind = "pooled" if study.model.head == "msdnet" else "msdnet"
    return {"other": replace(study, model=replace(study.model, head=other), schemes=SCHEMES, sample_counts=())}


def draw(measured: Measured, other: Measured) -> FigureResult:
    """Draw accuracy over the cost of a network with one exit, for both kinds, before and after."""
    numbers = table((measured, other))
    original = original_accuracy(measured)
    with figure_style():
        figure = new_figure()
        axes_of = figure.subplots(1, 2, sharey=True)
        for axes, scheme in zip(axes_of, SCHEMES, strict=True):
            for head, style in STYLES.items():
                rows = numbers[(numbers["head"] == head) & (numbers.scheme == scheme)]
                for name, stage in (("before", "before"), (scheme, "after")):
                    axes.plot(100 * rows.cost_fraction, rows[stage], style, markersize=4.5, linewidth=1.4,
                              color=COLOURS[name], label=f"{head}, {name}")  # fmt: skip
            axes.axhline(original, color=COLOURS["original"], linewidth=0.9, label="original")
            axes.set(xlabel="MACs of a network with this exit / original (%)", title=shown_name(scheme))
            axes.set_xlim(left=0)
        axes_of[0].set_ylabel("accuracy (mean of users)")
        # long names: four columns are wider than the figure
        shared_legend(figure, ncols=3)
        figure.suptitle(measured.study.title, fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(measured, numbers))


def table(both: tuple[Measured, Measured]) -> pd.DataFrame:
    """Return a row per kind of head, scheme and early exit: cost, accuracies, and the head's own size."""
    parts = []
    for measured in both:
        rows = measured.network.costs.exit_costs[:-1]
        for scheme in SCHEMES:
            means = exit_means(measured, scheme)[["before", "after", "macs"]]
            early = means.iloc[:-1].reset_index().assign(head=measured.study.model.head, scheme=scheme)
            early["cost_fraction"] = early.macs / means.macs.iloc[-1]
            early["head_macs"], early["head_params"] = [r.head_macs for r in rows], [r.head_params for r in rows]
            parts.append(early)
    return pd.concat(parts, ignore_index=True)


def _claims(measured: Measured, numbers: pd.DataFrame) -> tuple[Claim, ...]:
    return tuple(
        Claim(claim=f"exit {exit}", paper="not given", ours="; ".join(_words(numbers, head, exit) for head in STYLES))
        for exit in range(measured.network.num_exits)
    )


def _words(numbers: pd.DataFrame, head: str, exit: int) -> str:
    rows = numbers[(numbers["head"] == head) & (numbers.exit == exit)].set_index("scheme")
    found: Any = [rows.loc[scheme] for scheme in SCHEMES]
    after = " and ".join(f"{row.after:.1%} ({shown_name(scheme)})" for row, scheme in zip(found, SCHEMES, strict=True))
    return f"{head} at {found[0].cost_fraction:.0%} of the MACs: {found[0].before:.1%} to {after}"
