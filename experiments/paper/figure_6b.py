"""Fig. 6b: latency per exit at batch 1 against its MACs, on this machine."""

import numpy as np

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, busy, judge
from persephonee.experiments.studies.measurements import Measured
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 6b: latency against MACs"
STUDIES = ("resnet50", "mobilenet_v2")


def draw(measured: Measured) -> FigureResult:
    """Draw the median latency of leaving at each exit, and the straight line through them."""
    table, line = measured.latency, fit(measured)
    mega = table.macs / 1e6
    with figure_style():
        figure = new_figure(0.75)
        axes = figure.subplots()
        ends = np.array([0, mega.max()])
        axes.plot(ends, line[0] * ends + line[1], color=COLOURS["original"], linewidth=1, linestyle=":", label="fit")
        early = table.exit < table.exit.max()
        axes.plot(mega[early], table.latency_ms[early], "o", color=COLOURS["hard labels"], label="early exits")
        axes.plot(
            mega[~early], table.latency_ms[~early], "*", markersize=11, color=COLOURS["original"], label="original"
        )
        for exit, x, y in zip(table.exit[early], mega[early], table.latency_ms[early], strict=True):
            axes.annotate(str(exit), (x, y), (4, -11), textcoords="offset points", fontsize=8.5)
        threads = int(table.threads.iloc[0])
        axes.set(xlabel="MMAC", ylabel=f"median latency, batch 1, {threads} thread{'s'[: threads - 1]} (ms)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        figure.suptitle(measured.study.title, fontsize=9.5)
        axes.legend(loc="upper left")
    claim = Claim(
        claim="latency is linear in the operations",
        paper="linear (no number given)",
        ours=f"R² = {line[2]:.3f}{busy(table['load'].max())}",
        verdict=judge(same_direction=line[0] > 0, as_far=line[2] > 0.9),
    )
    return FigureResult(figure=figure, numbers=table, claims=(claim,))


def fit(measured: Measured) -> tuple[float, float, float]:
    """Return the slope in ms per MMAC, the intercept in ms, and R², of latency over MACs."""
    x, y = measured.latency.macs.to_numpy() / 1e6, measured.latency.latency_ms.to_numpy()
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept), float(np.corrcoef(x, y)[0, 1] ** 2)
