"""What a figure gives: a picture, a table of its numbers, and the paper's claims beside ours."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from experiments.figure_measurements import Measured, write_table
from multi_exit.atomic_files import write_text_atomically
from server.figures_style import AFTER, BEFORE, FRONT, ORIGINAL, figure_style, save_figure

SELF_SUPERVISION = "#cc79a7"
COLOURS = {
    "before": BEFORE,
    "hard labels": AFTER,
    "self-distillation": FRONT,
    "self-supervision": SELF_SUPERVISION,
    "original": ORIGINAL,
}
"""One colour for one thing in all figures; Okabe and Ito's."""

DIRECTIONS = {True: "yes", False: "no", None: "–"}

PAPER_ORIGINAL = 0.7496
"""Accuracy of the paper's original ResNet-50 (Fig. 3a)."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper, its value, and ours.

    Attributes:
        claim: what is compared.
        paper: the paper's value.
        ours: ours, or that it was not reached.
        same_direction: whether ours points where the paper's does; None where the paper says nothing.
        why: why it differs.
    """

    claim: str
    paper: str
    ours: str
    same_direction: bool | None
    why: str


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


def save_result(result: FigureResult, name: str, title: str, made_on: str, out: Path) -> None:
    """Write NAME.png, NAME.svg, NAME.parquet and NAME.md into `out`."""
    with figure_style():
        save_figure(result.figure, out, name)
    write_table(result.numbers, out / f"{name}.parquet")
    write_table(pd.DataFrame([asdict(claim) for claim in result.claims]), out / f"{name}-claims.parquet")
    write_text_atomically(out / f"{name}.md", page(name, title, made_on, result.claims))


def page(name: str, title: str, made_on: str, claims: Sequence[Claim]) -> str:
    """Return a figure's part of the results page, in Markdown."""
    lines = [f"## {title}", "", f"![{title}]({name}.png)", "", f"Made on: {made_on}.", ""]
    lines += ["| claim | paper | ours | same direction | why it differs |", "|---|---|---|---|---|"]
    lines += [f"| {c.claim} | {c.paper} | {c.ours} | {DIRECTIONS[c.same_direction]} | {c.why} |" for c in claims]
    return "\n".join([*lines, ""])


def differs(measured: Measured) -> str:
    """Return what sets a study apart from the paper's, in words that hold for each of its claims."""
    study = measured.study
    exits, users = measured.network.num_exits, measured.exits.user.nunique()
    samples = measured.exits[measured.exits.whole].num_train.mean()
    return f"other data and scale: {study.title}, {exits} exits, {users} users, {samples:.0f} training samples each"


def exit_means(measured: Measured, scheme: str) -> pd.DataFrame:
    """Return per exit, indexed by its number: mean over users of before and after, quartiles, macs and params."""
    table = measured.exits[(measured.exits.scheme == scheme) & measured.exits.whole]
    groups = table.groupby("exit")
    means = groups[["before", "after", "macs", "params"]].mean()
    for stage in ("before", "after"):
        means[f"{stage}_p25"], means[f"{stage}_p75"] = groups[stage].quantile(0.25), groups[stage].quantile(0.75)
    return means


def original_accuracy(measured: Measured) -> float:
    """Return the mean over users of the last exit's accuracy."""
    return float(exit_means(measured, "hard labels").before.iloc[-1])


def first_reaching(accuracies: pd.Series, target: float) -> int | None:
    """Return the first early exit whose accuracy is `target` at least, None where there is none."""
    reached = accuracies.iloc[:-1][accuracies.iloc[:-1] >= target - 1e-9]
    return int(reached.index[0]) if len(reached) else None


def named(exit: int | None) -> str:
    """Return an exit's name for a table."""
    return "no early exit" if exit is None else f"exit {exit}"
