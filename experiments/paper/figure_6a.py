"""Fig. 6a: seconds per sample-pass of training each exit alone, all exits, and the whole network, on this CPU.

The paper's way runs the frozen backbone in every epoch; ours has cached the features.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator
from torch import Tensor, nn
from torch.nn import functional

from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, busy, judge
from persephonee.experiments.studies.measurements import Measured
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.report.figure_style import PAPER as PAPER_COLOUR
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "Fig. 6a: time to train"
NOTE = """\
The paper's way runs the frozen backbone in every epoch; with cached features it runs once for all of them. At 96 px the
heads weigh more against the backbone than at the paper's 224 px, and the processor is another one.
"""
STUDIES = ("resnet50", "mobilenet_v2")
BATCH = 16
REPEATS = 5
GREY = "#8c8c8c"
WAYS: dict[str, dict[str, Any]] = {
    "paper's way": {"fill": False, "hatch": "////", "edgecolor": GREY},
    "features cached": {"color": GREY},
    "whole network": {"color": COLOURS["original"]},
}
"""Backbone in every epoch; one pass for all epochs; all weights."""
PAPER = (2.0, 22.7)
"""How many times faster exits train than the whole network."""


def draw(measured: Measured) -> FigureResult:
    """Draw the median time of a training step per sample; bars for both ways, the whole network beside them."""
    load = os.getloadavg()[0]
    table = time_training(measured.network).assign(load=load)
    names = list(dict.fromkeys(table.trained))
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        for way, style in WAYS.items():
            rows = table[table.way == way]
            x = np.array([names.index(name) for name in rows.trained])
            offset = {"paper's way": -0.2, "features cached": 0.2, "whole network": 0.0}[way]
            axes.bar(x + offset, 1000 * rows.seconds, width=0.38, label=way, **style)
        whole = 1000 * table.seconds[table.way == "whole network"].iloc[0]
        for times in PAPER:
            axes.axhline(whole / times, color=COLOURS["original"], linewidth=1, linestyle=":")
            box = {"facecolor": PAPER_COLOUR, "edgecolor": "none", "pad": 1}
            words = f"paper:\n{times:g}x faster"
            axes.text(len(names) - 0.4, whole / times, words, va="center", fontsize=8.5, bbox=box)
        axes.set_xlim(-0.6, len(names) + 0.6)
        axes.set_xticks(range(len(names)), names)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(visible=False, axis="x")
        threads = torch.get_num_threads()
        axes.set(ylabel=f"ms per sample-pass, {threads} thread{'s'[: threads - 1]}")
        figure.suptitle(measured.study.title, fontsize=10.5)
        figure.legend(loc="outside lower center", ncols=3)
    return FigureResult(figure=figure, numbers=table, claims=claims(measured, table))


def claims(measured: Measured, table: pd.DataFrame) -> tuple[Claim, ...]:
    """Return how much faster exits train than the whole network."""
    seconds = table.set_index(["trained", "way"]).seconds
    whole = seconds["whole", "whole network"]
    found = []
    for way in ("paper's way", "features cached"):
        times = whole / table[table.way == way].seconds
        found.append(
            Claim(
                claim=f"training exits against training the whole network, {way}",
                paper="2x to 22.7x faster",
                ours=f"{times.min():.1f}x to {times.max():.1f}x faster{busy(table['load'].max())}",
                verdict=judge(same_direction=bool(times.max() > 1), as_far=bool(times.max() >= PAPER[1])),
            )
        )
    one = min(2, measured.network.num_exits - 1)
    ratio = seconds["all exits", "paper's way"] / seconds[f"exit {one}", "paper's way"]
    found.append(
        Claim(
            claim="training all exits against exit 2 alone, paper's way",
            paper="4.0x as long (6.8 h and 1.7 h)",
            ours=f"{ratio:.1f}x as long{busy(table['load'].max())}",
            verdict=judge(same_direction=bool(ratio > 1), as_far=bool(ratio >= 4.0)),
        )
    )
    return tuple(found)


def time_training(network: MultiExitNetwork) -> pd.DataFrame:
    """Return seconds per sample-pass: a row for each thing that is trained and each way.

    Gradients are computed and no step is taken, and BatchNorm's statistics are put back at the end.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, *network.input_shape, generator=generator)
    labels = torch.randint(network.num_classes, (BATCH,), generator=generator)
    with torch.no_grad():
        maps, _ = network.eval().features(images)
    everything = range(network.num_exits)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    rows = []
    for name, exits in {**{f"exit {i}": (i,) for i in everything}, "all exits": tuple(everything)}.items():
        for way, step in (
            ("paper's way", lambda exits=exits: _train_on_images(network, images, labels, exits)),
            ("features cached", lambda exits=exits: _train_on_maps(network.heads, maps, labels, exits)),
        ):
            rows.append({"trained": name, "way": way, "seconds": _median_seconds(step) / BATCH})
    network.stages.requires_grad_(True).train()
    seconds = _median_seconds(lambda: _train_everything(network, images, labels)) / BATCH
    network.load_state_dict(state)
    network.freeze_backbone().eval()
    return pd.DataFrame([*rows, {"trained": "whole", "way": "whole network", "seconds": seconds}])


def _train_on_images(network: MultiExitNetwork, images: Tensor, labels: Tensor, exits: Sequence[int]) -> None:
    maps, current = [], images
    with torch.no_grad():
        for stage in list(network.stages)[: max(exits) + 1]:
            current = stage(current)
            maps.append(current)
    _train_on_maps(network.heads, maps, labels, exits)


def _train_on_maps(heads: nn.ModuleList, maps: Sequence[Tensor], labels: Tensor, exits: Sequence[int]) -> None:
    loss = torch.stack([functional.cross_entropy(heads[i](maps[i]), labels) for i in exits]).sum()
    torch.autograd.grad(loss, [p for i in exits for p in heads[i].parameters()])


def _train_everything(network: MultiExitNetwork, images: Tensor, labels: Tensor) -> None:
    current = images
    for stage in network.stages:
        current = stage(current)
    torch.autograd.grad(functional.cross_entropy(current, labels), list(network.stages.parameters()))


def _median_seconds(step: Callable[[], None]) -> float:
    """Return the median of a few runs after one that is not counted."""
    step()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))
