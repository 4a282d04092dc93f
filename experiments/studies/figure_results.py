"""What a figure gives: a picture, a table of its numbers, and the paper's claims beside ours."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.workers import write_table
from persephonee.multi_exit.atomic_files import write_json_atomically, write_text_atomically
from persephonee.server.report.figure_style import AFTER, BEFORE, FRONT, ORIGINAL, figure_style, save_figure

SELF_SUPERVISION = "#cc79a7"
COLOURS = {
    "before": BEFORE,
    "hard labels": AFTER,
    "self-distillation": FRONT,
    "self-supervision": SELF_SUPERVISION,
    "frequencies": "#e69f00",
    "frequencies, no labels": "#56b4e9",
    "frequencies, labels": "#7b5ea7",
    "original": ORIGINAL,
}
"""One colour for one thing in all figures; Okabe and Ito's, and a violet."""

NAMES = {
    "frequencies": "class frequencies",
    "frequencies, no labels": "class frequencies, self-distillation",
    "frequencies, labels": "class frequencies, hard labels",
}
"""For a reader, where a scheme's own name is short."""

MARKERS = "osv^DPX"
"""Of a line for each exit."""

Verdict = Literal["holds", "holds in part", "does not hold"]

PAPER_ORIGINAL = 0.7496
"""Accuracy of the paper's original ResNet-50 (Fig. 3a)."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper, its value, and ours.

    Attributes:
        claim: what is compared.
        paper: the paper's value.
        ours: ours, or that it was not reached.
        verdict: as `judge` finds it; None where the paper says nothing.
    """

    claim: str
    paper: str
    ours: str
    verdict: Verdict | None = None


def judge(*, same_direction: bool, as_far: bool) -> Verdict:
    """Return whether a claim of the paper holds here.

    Args:
        same_direction: ours points where the paper's value does.
        as_far: ours goes as far, by its mean or as far as its interval reaches.
    """
    if not same_direction:
        return "does not hold"
    return "holds" if as_far else "holds in part"


@dataclass(frozen=True, kw_only=True, eq=False)
class FigureResult:
    """A figure that has been drawn.

    Attributes:
        figure: the picture.
        numbers: what it shows, one row per mark.
        claims: the paper's claims about it.
    """

    figure: Figure
    numbers: pd.DataFrame
    claims: tuple[Claim, ...]


def save_result(
    result: FigureResult, name: str, title: str, measured: Measured, about: dict[str, Any], out: Path
) -> None:
    """Write NAME.png, NAME.svg, NAME.parquet, NAME-claims.parquet, NAME.md and NAME.json into `out`.

    Args:
        result: the figure, its numbers and its claims.
        name: the files' name without its ending.
        title: the figure's title.
        measured: the measurements that it was drawn from.
        about: how it was made, for NAME.json; JSON types only.
        out: the folder to write into.
    """
    with figure_style():
        save_figure(result.figure, out, name)
    write_table(result.numbers, out / f"{name}.parquet")
    write_table(pd.DataFrame([asdict(claim) for claim in result.claims]), out / f"{name}-claims.parquet")
    write_text_atomically(out / f"{name}.md", page(name, title, made_on(measured), result.claims))
    facts = {
        "title": title,
        "study": measured.study.name,
        "made_on": made_on(measured),
        "cpu_seconds": round(measured.cpu_seconds),
        **about,
    }
    write_json_atomically(out / f"{name}.json", facts)


def page(name: str, title: str, made_on: str, claims: Sequence[Claim]) -> str:
    """Return a figure's part of the results page, in Markdown."""
    lines = [f"## {title}", "", f"![{title}]({name}.png)", "", f"Made on: {made_on}.", "", *claims_table(claims)]
    return "\n".join([*lines, ""])


def claims_table(claims: Sequence[Claim]) -> list[str]:
    """Return the lines of the claims' table, in Markdown."""
    lines = ["| claim | paper | ours | |", "|---|---|---|---|"]
    return lines + [f"| {c.claim} | {c.paper} | {c.ours} | {c.verdict or '–'} |" for c in claims]


def made_on(measured: Measured) -> str:
    """Return what a study is made on: data, network, users and their samples, and who was left out."""
    study, whole = measured.study, measured.exits[measured.exits.whole]
    users, samples = whole.user.nunique(), whole.groupby("user").num_train.first()
    small = f"; {measured.too_small} more have fewer samples than a split needs" if measured.too_small else ""
    size = f"{samples.min()}" if samples.min() == samples.max() else f"{samples.min()} to {samples.max()}"
    distilled = f", self-distillation at temperature {study.temperature:g}" if study.temperature != 1 else ""
    heads = f"{measured.network.num_exits} exits"
    return f"{study.title}, {heads}, {users} users with {size} training samples each{distilled}{small}"


def busy(load: float) -> str:
    """Return a remark on times that were taken while other work went on, nothing where the machine was quiet."""
    cores = os.cpu_count() or 1
    return f" (on a busy machine: load {load:.0f} on {cores} cores)" if load > cores + 1 else ""


def shown_name(scheme: str) -> str:
    """Return a scheme's name for a reader."""
    return NAMES.get(scheme, scheme)


def exit_line(exit: int, early: int) -> dict[str, Any]:
    """Return how a figure with a line for each of `early` exits draws one: the deeper, the darker."""
    scale = LinearSegmentedColormap.from_list("exits", ["#9fd8c1", FRONT, AFTER, "#14304f"])
    marker = MARKERS[exit % len(MARKERS)]
    return {"marker": marker, "markersize": 4.5, "color": scale(exit / max(early - 1, 1))}


def named(exit: int | None) -> str:
    """Return an exit's name for a table."""
    return "no early exit" if exit is None else f"exit {exit}"
