"""The picture of the exits that new users start from: accuracy over epochs, and over samples."""

import pandas as pd
from matplotlib.figure import Figure

from persephonee.server.report.figure_style import (
    AFTER,
    BEFORE,
    FRONT,
    ORIGINAL,
    SIZE_INCHES,
    figure_style,
    shared_legend,
)

COLOURS = {"pretrained": BEFORE, "shared": FRONT, "reptile": AFTER, "fomaml": "#cc79a7"}
MARKERS = "osDv^P"


def draw_starts(means: pd.DataFrame, title: str) -> Figure:
    """Return the figure: on the left after so many epochs on all samples, on the right with so many samples.

    Args:
        means: start, samples, epochs, exit and accuracy, as `summarise` returns them.
        title: the data, and how many users.
    """
    last = means.exit.max()
    early = means[means.exit < last]
    # the shallow exits have most to learn, the deep ones are near the last exit anyway
    parts = {"exit 0": early[early.exit == 0], "mean of the early exits": early}
    with figure_style():
        figure = Figure(figsize=(SIZE_INCHES[0], 2 * SIZE_INCHES[1]), layout="constrained")
        axes = figure.subplots(len(parts), 2, sharey="row")
        for row, (what, part) in zip(axes, parts.items(), strict=True):
            for number, start in enumerate(dict.fromkeys(means.start)):
                style = {"color": COLOURS.get(start, "#56b4e9"), "marker": MARKERS[number % len(MARKERS)]}
                own = part[part.start == start]
                epochs = own[own.samples == "all"].groupby("epochs").accuracy.mean()
                row[0].plot([str(n) for n in epochs.index], 100 * epochs, label=start, markersize=4.5, **style)
                counts = own[own.epochs == own.epochs.max()].groupby("samples", sort=False).accuracy.mean()
                row[1].plot(list(counts.index), 100 * counts, markersize=4.5, **style)
            original = 100 * means[(means.exit == last)].accuracy.mean()
            for axis in row:
                axis.axhline(original, color=ORIGINAL, linestyle="--", linewidth=1.0)
            row[0].set_ylabel(f"accuracy of\n{what} (%)")
        axes[-1, 0].set_xlabel("epochs on all of a user's samples")
        axes[-1, 1].set_xlabel(f"samples of a user, {means.epochs.max()} epochs")
        shared_legend(figure)
        figure.suptitle(f"{title}, by the exits that they start from; dashed: the last exit", fontsize=10.5)
    return figure
