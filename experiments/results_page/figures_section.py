"""The results page's part on figures: the picture, the claims, and what they were made on, as their tables say it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from persephonee.experiments.figures import CALLS_NAME
from persephonee.experiments.results_page.sources import Sources, shell_block
from persephonee.experiments.studies.figure_results import Claim, claims_table

PREFIX = "results-"
"""Of a copied picture's name."""


def render_figures(sources: Sources, names: tuple[str, ...], images: Path) -> list[str]:
    """Return the lines of some figures on all their studies, and copy their pictures into the folder `images`."""
    lines: list[str] = []
    for name in names:
        titled, note = False, ""
        for folder in sources.figures:
            for path in sorted(folder.glob(f"figure-{name}-*.json")):
                facts = json.loads(path.read_text())
                if not titled:
                    lines += [f"### {facts['title']}", ""]
                    titled = True
                lines += _figure(folder, path.stem, facts, images)
                note = facts.get("note", "")
        lines += [note, ""] if note else []
    return lines


def render_commands(sources: Sources) -> list[str]:
    """Return how the figures were made, what each study took, and what the calls took on the clock."""
    lines: list[str] = []
    for folder in sources.figures:
        every = [json.loads(path.read_text()) for path in sorted(folder.glob("figure-*.json"))]
        # one line for each study: the last figure drawn says how all were made
        for facts in {facts["study"]: facts for facts in every}.values():
            lines.append(f"| {facts['made_on']} | {facts['cpu_seconds'] / 60:.0f} | {facts['machine']}, "
                         f"{facts['versions']} |")  # fmt: skip
    if not lines:
        return []
    head = ["What each study took, its global model included, without what a figure beyond the paper adds:", "",
            "| study | CPU minutes | on |", "|---|---|---|"]  # fmt: skip
    resumes = "A call takes up what an earlier one left in its folder."
    return [*head, *lines, "", resumes, "", *(line for folder in sources.figures for line in _calls(folder))]


def _calls(folder: Path) -> list[str]:
    """Return the calls that made a folder and how long each took; a later one finds what an earlier one left."""
    path = folder / CALLS_NAME
    calls = json.loads(path.read_text()) if path.exists() else []
    lines = []
    for call in calls:
        hours, minutes = divmod(round(call["seconds"] / 60), 60)
        lines += [*shell_block(call["command"]), f"This call took {hours} h {minutes} min on the clock.", ""]
    return lines


def claims_of(sources: Sources, name: str) -> dict[str, list[Claim]]:
    """Return a figure's claims by what they were made on."""
    found: dict[str, list[Claim]] = {}
    for folder in sources.figures:
        for path in sorted(folder.glob(f"figure-{name}-*.json")):
            facts = json.loads(path.read_text())
            found[facts["made_on"]] = read_claims(folder / f"{path.stem}-claims.parquet")
    return found


def read_claims(path: Path) -> list[Claim]:
    """Return the claims of a figure's table; columns that a claim does not have are left out."""
    rows: Any = pd.read_parquet(path).to_dict("records")
    return [
        Claim(
            claim=row["claim"],
            paper=row["paper"],
            ours=row["ours"],
            same_direction=None if pd.isna(row["same_direction"]) else bool(row["same_direction"]),
        )
        for row in rows
    ]


def _figure(folder: Path, stem: str, facts: dict[str, Any], images: Path) -> list[str]:
    images.mkdir(parents=True, exist_ok=True)
    picture = f"{PREFIX}{stem.removeprefix('figure-')}.png"
    shutil.copyfile(folder / f"{stem}.png", images / picture)
    claims = read_claims(folder / f"{stem}-claims.parquet")
    table = claims_table(claims) if any(c.paper != "not given" for c in claims) else _findings(claims)
    lines = [f"![{facts['title']}: {facts['study']}]({images.name}/{picture})", ""]
    return [*lines, f"Made on: {facts['made_on']}.", "", *table, ""]


def _findings(claims: list[Claim]) -> list[str]:
    """Return a table for what the paper says nothing about."""
    return ["| what | ours |", "|---|---|", *(f"| {claim.claim} | {claim.ours} |" for claim in claims)]
