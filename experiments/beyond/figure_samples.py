"""Beyond the paper: how many samples personalisation needs, with labels and without.

The paper's Fig. 4 has hard labels only. Users who know no labels need more: the original's answers to a few samples say
little of what its user meets. The users are those of a wider popularity, whose classes hold enough images.
"""

from dataclasses import replace

import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, exit_line, named, shown_name
from persephonee.experiments.studies.gains import exit_gains, exit_means, first_reaching, original_accuracy
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.studies import Study
from persephonee.server.report.figure_style import figure_style, new_figure, shared_legend

TITLE = "Samples, with labels and without"
NOTE = """\
Users of a popularity 10 classes wide, whose classes hold enough images; each exit alone. Class frequencies need fewer
samples than anything that is trained.
"""
STUDIES = ("mobilenet_v2",)
NEEDS_OWN_STUDY = True
SCHEMES = ("hard labels", "self-distillation", "frequencies")
IMAGES = (100, 400, 1_600)
"""Of a user, of which a split trains with some."""
WIDTH = 10.0
"""Of a user's popularity, in classes."""
USERS = 24


def variants(study: Study) -> dict[str, Study]:
    """Return the study with users of each number of images."""
    fewer = replace(study, schemes=SCHEMES, sample_counts=(), num_users=min(USERS, study.num_users))
    return {
        f"images_{images}": replace(fewer, data=replace(study.data, label_skew_width=WIDTH, samples_per_user=images))
        for images in IMAGES
    }


def draw(measured: Measured, **of_images: Measured) -> FigureResult:
    """Draw each exit's gain over the original, over the number of training samples."""
    numbers = table(of_images)
    early = measured.network.num_exits
    with figure_style():
        figure = new_figure()
        axes_of = figure.subplots(1, len(SCHEMES), sharey=True)
        for axes, scheme in zip(axes_of, SCHEMES, strict=True):
            for exit in range(early):
                rows = numbers[(numbers.scheme == scheme) & (numbers.exit == exit)]
                gain = 100 * (rows.after - rows.original)
                axes.plot(rows.train_samples, gain, label=f"exit {exit}", **exit_line(exit, early))
            axes.axhline(0, color=COLOURS["original"], linewidth=1.2, label="original")
            axes.set(xlabel="training samples of a user", title=shown_name(scheme), xscale="log")
            ticks = sorted(set(numbers.train_samples))
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
        axes_of[0].set_ylabel("accuracy − original (points)")
        shared_legend(figure)
        figure.suptitle(measured.study.title, fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(of_images))


def table(of_images: dict[str, Measured]) -> pd.DataFrame:
    """Return a row per number of samples, scheme and early exit: accuracies before and after, and the original's."""
    parts = []
    for measured in of_images.values():
        for scheme in SCHEMES:
            means = exit_means(measured, scheme)[["before", "after"]].iloc[:-1].reset_index()
            parts.append(
                means.assign(train_samples=train_samples(measured), scheme=scheme, original=original_accuracy(measured))
            )
    return pd.concat(parts, ignore_index=True)


def train_samples(measured: Measured) -> int:
    """Return how many samples train for a user, the median over users."""
    return int(measured.exits[measured.exits.whole].groupby("user").num_train.first().median())


def _claims(of_images: dict[str, Measured]) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            claim=f"{train_samples(one):,} training samples, {shown_name(scheme)}",
            paper="not given",
            ours=_words(one, scheme),
        )
        for one in of_images.values()
        for scheme in SCHEMES
    )


def _words(measured: Measured, scheme: str) -> str:
    gains = exit_gains(measured, scheme)
    reached = first_reaching(gains)
    cheaper = "" if reached is None else f" at {1 / reached.macs:.1f}x fewer MACs"
    return (
        f"{named(None if reached is None else reached.exit)} reaches the original of "
        f"{original_accuracy(measured):.1%}{cheaper}; first exit {gains[0].points.mean:+.1f} points, deepest "
        f"{gains[-1].points.mean:+.1f} ({measured.exits.user.nunique()} users)"
    )
