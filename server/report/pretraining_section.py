"""The report's part on how the model was trained before users personalised it."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from persephonee.server.report.figure_style import BEFORE, ORIGINAL, new_figure
from persephonee.server.results.pretraining_curves import Curve


def draw_pretraining(curves: Sequence[Curve]) -> Figure:
    """Draw the accuracy of each exit on users whom training never saw, and the training loss, over the epochs."""
    figure = new_figure()
    accuracy, loss = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in curves]
    last = len(curves[0]["validation_accuracy"]) - 1
    shades = matplotlib.colormaps["viridis"]
    for exit in range(last + 1):
        label = "last exit" if exit == last else f"exit {exit}"
        colour = ORIGINAL if exit == last else shades(0.1 + 0.75 * exit / max(last - 1, 1))
        values = [row["validation_accuracy"][exit] for row in curves]
        accuracy.plot(epochs, values, "o-", markersize=3, color=colour, label=label)
    loss.plot(epochs, [row["train_loss"] for row in curves], "o-", markersize=3, color=BEFORE)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    accuracy.set_ylabel("accuracy, users whom training never saw")
    loss.set_ylabel("training loss, nats")
    loss.set_ylim(bottom=0)
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=8)
    return figure


def pretraining_caption(curves: Sequence[Curve]) -> str:
    """Return a sentence on what the figure shows."""
    end = curves[-1]["validation_accuracy"]
    return (
        f"The model that all users began with: {len(curves)} epochs; at the end its first exit had "
        f"{100 * end[0]:.1f} % and its last exit {100 * end[-1]:.1f} % on users whom training never saw."
    )
