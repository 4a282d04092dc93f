"""What the results page is made from: folders of figures, of simulation runs, of models and of tables.

A folder is recognised by what it holds, so all of them are given in one list.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persephonee.clients.errors import ClientSettingsError


@dataclass(frozen=True, kw_only=True)
class Run:
    """A simulation's run folder.

    Attributes:
        path: the folder.
        config: config.json.
        summary: summary.json.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def has_held_out_users(self) -> bool:
        """Whether users who took no part were measured after each round."""
        return (self.path / "held_out.parquet").exists()


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Everything that the page may be made from.

    Attributes:
        figures: folders of `persephonee figures`.
        runs: folders of `persephonee simulate`.
        models: descriptions of models, by fingerprint, and the names of their folders.
        starts: tables of `persephonee.experiments.meta_learning.experiment`, means over users.
        attacks: tables of `persephonee.experiments.membership.experiment`.
    """

    figures: tuple[Path, ...]
    runs: tuple[Run, ...]
    models: dict[str, tuple[str, dict[str, Any]]]
    starts: tuple[Path, ...] = ()
    attacks: tuple[Path, ...] = ()


def recognise(folders: Sequence[Path]) -> Sources:
    """Return what the folders hold.

    Raises:
        ClientSettingsError: a folder holds none of it.
    """
    figures: list[Path] = []
    runs: list[Run] = []
    models: dict[str, tuple[str, dict[str, Any]]] = {}
    starts: list[Path] = []
    attacks: list[Path] = []
    for folder in folders:
        tables = [sorted(folder.glob(f"{kind}-*.csv")) for kind in ("meta-learning", "membership")]
        if any(folder.glob("figure-*.json")):
            figures.append(folder)
        elif (folder / "summary.json").exists():
            runs.append(Run(path=folder, config=_json(folder / "config.json"), summary=_json(folder / "summary.json")))
        elif (folder / "network.json").exists():
            described = _json(folder / "network.json")
            models[described["fingerprint"]] = (folder.name, described)
        elif any(tables):
            starts += tables[0]
            attacks += tables[1]
        else:
            raise ClientSettingsError(
                f"{folder} holds no figures, no finished run, no model and no table: name what `persephonee figures`, "
                "`simulate`, `pretrain`, `persephonee.experiments.meta_learning.experiment` or "
                "`persephonee.experiments.membership.experiment` wrote."
            )
    return Sources(
        figures=tuple(figures), runs=tuple(runs), models=models, starts=tuple(starts), attacks=tuple(attacks)
    )


def as_seen_from_here(path: str | Path) -> str:
    """Return a path relative to the working folder, since a page is read on other machines."""
    return os.path.relpath(path)


def shell_block(words: Sequence[str]) -> list[str]:
    """Return a command as a Markdown block, its options on lines of up to 110 characters."""
    lines, line = [], words[0]
    for word in words[1:]:
        # an option and its value stay together
        if len(line) + len(word) > 105 and word.startswith("--"):
            lines.append(f"{line} \\")
            line = f"    {word}"
        else:
            line = f"{line} {word}"
    return ["```sh", *lines, line, "```", ""]


def percent(share: float | None, digits: int = 1) -> str:
    """Return a fraction as "95.3%", a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def _json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ClientSettingsError(f"{path} cannot be read ({error}): make it again.") from None
    return values
