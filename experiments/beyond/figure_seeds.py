"""Beyond the paper: the same study with three seeds, and how far the results spread.

A seed settles the split of a user's samples and the order of training; for photographs also the pools, the users and
the global exits. Handwriting keeps one global model.
"""

from dataclasses import replace

import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, shown_name
from persephonee.experiments.studies.gains import exit_means
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.studies import Study
from persephonee.server.report.figure_style import figure_style, new_figure, shared_legend

TITLE = "Three seeds"
NOTE = """\
Means and standard deviations of three seeds, each exit alone. A seed settles the split of a user's samples and the
order of training; for photographs also the pools, the users and the global exits.
"""
STUDIES = ("mobilenet_v2", "qmnist")
SHOWN = ("hard labels", "self-distillation", "frequencies", "frequencies, labels")
MARKERS = "osv"


def variants(study: Study) -> dict[str, Study]:
    """Return the study with two more seeds."""
    fewer = replace(study, schemes=SHOWN, sample_counts=())
    return {f"seed_{number}": fewer.seeded(study.seed + number) for number in (1, 2)}


def draw(measured: Measured, seed_1: Measured, seed_2: Measured) -> FigureResult:
    """Draw each seed's mean accuracy per exit."""
    seeds = (measured, seed_1, seed_2)
    numbers = table(seeds)
    early = measured.network.num_exits
    with figure_style():
        figure = new_figure()
        axes_of = figure.subplots(1, len(SHOWN), sharey=True)
        for axes, scheme in zip(axes_of, SHOWN, strict=True):
            for seed, marker in enumerate(MARKERS):
                rows = numbers[(numbers.scheme == scheme) & (numbers.seed == seed)]
                early_rows, original = rows[rows.exit < early], rows[rows.exit == early].before.iloc[0]
                for name, stage in (("before", "before"), (scheme, "after")):
                    axes.plot(early_rows.exit, early_rows[stage], marker=marker, markersize=4.5, linewidth=1,
                              color=COLOURS[name], label=name if seed == 0 else None)  # fmt: skip
                axes.axhline(original, color=COLOURS["original"], linewidth=0.8, label=None if seed else "original")
            axes.set(xlabel="exit", title=shown_name(scheme).replace(", ", ",\n"))
            axes.set_xticks(range(early))
        axes_of[0].set_ylabel("accuracy (mean of users)")
        shared_legend(figure)
        figure.suptitle(f"{measured.study.title}, three seeds", fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(measured, numbers))


def table(seeds: tuple[Measured, ...]) -> pd.DataFrame:
    """Return mean accuracies before and after, a row per scheme, seed and exit."""
    parts = []
    for seed, measured in enumerate(seeds):
        for scheme in SHOWN:
            means = exit_means(measured, scheme)[["before", "after"]].reset_index()
            parts.append(means.assign(scheme=scheme, seed=seed))
    return pd.concat(parts, ignore_index=True)


def _claims(measured: Measured, numbers: pd.DataFrame) -> tuple[Claim, ...]:
    last = measured.network.num_exits
    original = numbers[numbers.exit == last].groupby("seed").before.mean()
    found = [_spread("original", original)]
    for scheme in SHOWN:
        for exit, name in ((0, "exit 0"), (last - 1, "deepest early exit")):
            rows = numbers[(numbers.scheme == scheme) & (numbers.exit == exit)].set_index("seed")
            found.append(_spread(f"{name} after {shown_name(scheme)}", rows.after, rows.after - rows.before))
    return tuple(found)


def _spread(what: str, accuracies: pd.Series, gains: pd.Series | None = None) -> Claim:
    ours = f"{accuracies.mean():.1%} ± {100 * accuracies.std():.1f} points"
    if gains is not None:
        ours += f"; gain {100 * gains.mean():+.1f} ± {100 * gains.std():.1f} points"
    return Claim(claim=what, paper="not given", ours=ours)
