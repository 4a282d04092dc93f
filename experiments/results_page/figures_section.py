"""The results page's part on figures: the pictures, one table of claims, and what they were made on."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from persephonee.experiments.figures import CALLS_NAME
from persephonee.experiments.results_page.sources import Sources, shell_block
from persephonee.experiments.studies.figure_results import Claim

PREFIX = "results-"
"""Of a copied picture's name."""

NAMES = {
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "femnist": "FEMNIST",
    "qmnist": "QMNIST",
    "writers": "built-in writers",
}
"""The studies' names in a table's head."""


@dataclass(frozen=True, kw_only=True)
class DrawnFigure:
    """A figure on one study.

    Attributes:
        folder: that holds it.
        stem: of its files.
        facts: its JSON.
        claims: of its table.
    """

    folder: Path
    stem: str
    facts: dict[str, Any]
    claims: tuple[Claim, ...]

    @property
    def study(self) -> str:
        """The study's name for a reader."""
        return NAMES.get(self.facts["study"], str(self.facts["study"]))


def render_figures(sources: Sources, names: tuple[str, ...], images: Path) -> list[str]:
    """Return the lines of some figures, and copy their pictures into the folder `images`.

    Each has a picture, one table with a column for each study, and its note.
    """
    lines: list[str] = []
    for name in names:
        drawn = figures_of(sources, name)
        if drawn:
            first = drawn[0].facts
            lines += [f"### {first['title']}", "", *_pictures(drawn, images), "", *claims_table(drawn), ""]
            lines += [first["note"].strip(), ""] if first.get("note") else []
    return lines


def figures_of(sources: Sources, name: str) -> list[DrawnFigure]:
    """Return a figure on each study that it was drawn on, in the studies' order."""
    found = [
        DrawnFigure(
            folder=folder,
            stem=path.stem,
            facts=json.loads(path.read_text()),
            claims=read_claims(folder / f"{path.stem}-claims.parquet"),
        )
        for folder in sources.figures
        for path in sorted(folder.glob(f"figure-{name}-*.json"))
    ]
    order = list(NAMES)
    return sorted(found, key=lambda one: order.index(one.facts["study"]) if one.facts["study"] in order else len(order))


def claims_table(drawn: Sequence[DrawnFigure]) -> list[str]:
    """Return the lines of one table: a row for each claim, a column for each study, and the paper's value beside."""
    papers = {claim.claim: claim.paper for one in drawn for claim in one.claims}
    with_paper = any(paper != "not given" for paper in papers.values())
    head = ["claim" if with_paper else "what", *(["paper"] if with_paper else []), *(one.study for one in drawn)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    by_study = [{claim.claim: claim for claim in one.claims} for one in drawn]
    for name, paper in papers.items():
        cells = [_cell(claims.get(name)) for claims in by_study]
        lines.append(f"| {' | '.join([name, *([paper] if with_paper else []), *cells])} |")
    return lines


def _cell(claim: Claim | None) -> str:
    if claim is None:
        return "–"
    return claim.ours if claim.verdict is None else f"{claim.ours}; *{claim.verdict}*"


def render_studies(sources: Sources) -> list[str]:
    """Return a row for each study: what it is made on."""
    made_on = {
        facts["study"]: facts["made_on"]
        for folder in sources.figures
        for facts in _facts(folder)
        if facts["study"] in NAMES
    }
    if not made_on:
        return []
    return ["| study | made on |", "|---|---|", *(f"| {NAMES[k]} | {made_on[k]} |" for k in NAMES if k in made_on), ""]


def render_commands(sources: Sources) -> list[str]:
    """Return how the figures were made, what each study took, and what the calls took on the clock."""
    lines: list[str] = []
    for folder in sources.figures:
        # one line for each study: the last figure drawn says how all were made
        for facts in {facts["study"]: facts for facts in _facts(folder)}.values():
            minutes = facts["cpu_seconds"] / 60
            lines.append(f"| {facts['made_on']} | {minutes:.0f} | {facts['machine']}, {facts['versions']} |")
    if not lines:
        return []
    head = ["What each study took, its global model included, without what a figure beyond the paper adds:", "",
            "| study | CPU minutes | on |", "|---|---|---|"]  # fmt: skip
    resumes = "A call takes up what an earlier one left in its folder."
    return [*head, *lines, "", resumes, "", *(line for folder in sources.figures for line in _calls(folder))]


def _facts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("figure-*.json"))]


def _calls(folder: Path) -> list[str]:
    """Return the calls that made a folder and how long each took; a later one finds what an earlier one left."""
    path = folder / CALLS_NAME
    calls = json.loads(path.read_text()) if path.exists() else []
    lines = []
    for call in calls:
        hours, minutes = divmod(round(call["seconds"] / 60), 60)
        lines += [*shell_block(call["command"]), f"This call took {hours} h {minutes} min on the clock.", ""]
    return lines


def read_claims(path: Path) -> tuple[Claim, ...]:
    """Return the claims of a figure's table."""
    rows: Any = pd.read_parquet(path).to_dict("records")
    return tuple(
        Claim(
            claim=row["claim"],
            paper=row["paper"],
            ours=row["ours"],
            verdict=None if pd.isna(row["verdict"]) else row["verdict"],
        )
        for row in rows
    )


def _pictures(drawn: Sequence[DrawnFigure], images: Path) -> list[str]:
    """Copy the pictures, show the first, and link to the others: two at half the width could not be read."""
    images.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in drawn:
        picture = f"{PREFIX}{one.stem.removeprefix('figure-')}.png"
        shutil.copyfile(one.folder / f"{one.stem}.png", images / picture)
        paths.append(f"{images.name}/{picture}")
    lines = [f"![{drawn[0].facts['title']}: {drawn[0].study}]({paths[0]})"]
    if len(drawn) > 1:
        links = ", ".join(f"[{one.study}]({path})" for one, path in zip(drawn[1:], paths[1:], strict=True))
        lines += ["", f"This is {drawn[0].study}; the same picture for {links}."]
    return lines
