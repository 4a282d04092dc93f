"""Fig. 7: accuracy against latency for thresholds 0 to 1, with the operating points that calibration chose."""

from typing import Any

import numpy as np
import pandas as pd

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, busy, judge, shown_name
from persephonee.experiments.studies.gains import original_accuracy
from persephonee.experiments.studies.measurements import Measured
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 7: accuracy against latency"
STUDIES = ("resnet50", "mobilenet_v2")
SCHEMES = {"hard labels": 3.2, "self-distillation": 2.2, "frequencies": 2.2}
"""The paper's throughput at the original's accuracy, over the original's; frequencies are ours, without labels too."""
NOTE = """\
The curves sweep one threshold over the test samples, as the paper does, so they show what the exits could give to
somebody who knew it; the crosses are policies that each user's calibration samples chose by the paper's rule.
"What is deployed" has the policies that are in force.
"""


def draw(measured: Measured) -> FigureResult:
    """Draw the users' mean at each threshold with all exits, and their own policies; the paper's as diamonds."""
    table = with_latency(measured)
    curves = table.groupby(["scheme", "stage", "threshold"])[["accuracy", "latency_ms"]].mean()
    original, whole = original_accuracy(measured), _original_ms(measured)
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        shown = {"before": ("hard labels", "before"), **{name: (name, "after") for name in SCHEMES}}
        for name, key in shown.items():
            curve: Any = curves.loc[key]
            axes.plot(curve.latency_ms, curve.accuracy, "o-", markersize=3, color=COLOURS[name], label=shown_name(name))
        for name, times in SCHEMES.items():
            axes.plot(*operating_point(measured, name), "P", markersize=10, mec="white", color=COLOURS[name], zorder=4)
            axes.plot([whole / times], [original], "D", mfc="none", mec=COLOURS[name], markersize=7)
        axes.plot([whole], [original], "*", markersize=11, color=COLOURS["original"], label="original")
        axes.axhline(original, color=COLOURS["original"], linewidth=0.8)
        axes.plot(
            [],
            [],
            "P",
            markersize=10,
            mec="white",
            color=COLOURS["original"],
            label="calibrated and\npruned policies",
        )
        axes.plot(
            [], [], "D", mfc="none", mec=COLOURS["original"], label="paper's throughput at\nthe original's accuracy"
        )
        axes.set(xlabel="mean latency of a sample, batch 1 (ms)", ylabel="accuracy (mean of users)")
        figure.suptitle(measured.study.title, fontsize=10.5)
        axes.set_xlim(left=0)
        figure.legend(loc="outside right center")
    return FigureResult(figure=figure, numbers=curves.reset_index(), claims=claims(measured))


def with_latency(measured: Measured) -> pd.DataFrame:
    """Return the sweeps with each operating point's mean latency on this machine, all exits in use."""
    rates = measured.sweeps[[f"rate_{exit}" for exit in range(measured.network.num_exits + 1)]].to_numpy()
    latency = measured.latency.sort_values("exit")
    leaving = np.cumsum(latency.stage_ms) + np.cumsum(latency.head_ms)
    return measured.sweeps.assign(latency_ms=rates @ leaving.to_numpy())


def operating_point(measured: Measured, scheme: str) -> tuple[float, float]:
    """Return mean latency in ms and accuracy of the policies that calibration and pruning left, over users."""
    policies = measured.policies[measured.policies.scheme == scheme]
    exits = range(measured.network.num_exits + 1)
    rates, kept = (policies[[f"{name}_{exit}" for exit in exits]].to_numpy(dtype=float) for name in ("rate", "kept"))
    latency = measured.latency.sort_values("exit")
    # a sample pays for the heads in use on its way, not for those that pruning took
    leaving = np.cumsum(latency.stage_ms.to_numpy()) + np.cumsum(kept * latency.head_ms.to_numpy(), axis=1)
    return float((rates * leaving).sum(axis=1).mean()), float(policies.accuracy_after.mean())


def throughput_gain(measured: Measured, scheme: str) -> float | None:
    """Return the original's latency over that of the fastest threshold that keeps the original's accuracy."""
    table = with_latency(measured)
    table = table[(table.scheme == scheme) & (table.stage == "after")]
    means = table.groupby("threshold")[["accuracy", "latency_ms"]].mean()
    enough = means[means.accuracy >= original_accuracy(measured) - 1e-9]
    return _original_ms(measured) / float(enough.latency_ms.min()) if len(enough) else None


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Return the throughput at the original's accuracy."""
    found = []
    for scheme, times in SCHEMES.items():
        ours = throughput_gain(measured, scheme)
        found.append(
            Claim(
                claim=f"throughput at the original's accuracy, {shown_name(scheme)}",
                paper=f"{times}x{' by self-distillation' if scheme == 'frequencies' else ''}",
                ours="not reached" if ours is None else f"{ours:.1f}x{busy(measured.latency['load'].max())}",
                verdict=judge(same_direction=ours is not None and ours > 1, as_far=ours is not None and ours >= times),
            )
        )
    return tuple(found)


def _original_ms(measured: Measured) -> float:
    """Return the latency of the network without early exits."""
    return float(measured.latency.stage_ms.sum())
