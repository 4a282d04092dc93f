"""The paper's figures and those beyond, from one call: `persephonee figures [NAMES] --scale S --out DIR`.

DIR/shared/            models and measurements, which a second call takes up again
DIR/FIGURE-STUDY.*     the picture as PNG and SVG, its numbers as parquet, its claims as parquet and Markdown, and what
                       it was made on as JSON
DIR/results.md         all of them on one page; `python -m experiments.results_page` makes the project's page
"""

import importlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from clients.errors import ClientSettingsError
from experiments.figure_measurements import Measured, measure
from experiments.figure_results import FigureResult, made_on, page, save_result
from experiments.figure_studies import STUDIES, Study, studies_of
from experiments.results_sources import as_seen_from_here
from multi_exit.atomic_files import write_text_atomically

NAMES = ("3a", "3b", "4", "5", "6a", "6b", "7", "headline", "users", "seeds", "shift", "heads", "guard", "width")
"""The paper's figures in its order, and those beyond; each is a module `experiments.figure_NAME`."""

HEADER = """\
# Figures

Made by `persephonee figures --scale {scale}`. A claim's direction is the same where ours points where the paper's does;
its size may differ, and the last column says why where ours falls short.
"""


def run_figures(
    names: Sequence[str],
    scale: str,
    out: Path,
    real_data: Path | None = None,
    *,
    only: Sequence[str] = (),
    users: int | None = None,
    qmnist_model: Path | None = None,
    writers_model: Path | None = None,
) -> list[Path]:
    """Measure what is missing, draw the figures, and write their page.

    Args:
        names: of `NAMES`; none draws all.
        scale: smoke, quick or full.
        out: folder for everything.
        real_data: folder with `qmnist-by-writer`, `tiny-imagenet-200` and `weights`; None takes the built-in writers.
        users: at most so many of each study; a later call with more goes on from there. None takes the scale's number.
        only: studies to draw, of `STUDIES`; none draws all that there are data for.
        qmnist_model: model for the study of QMNIST that is there already.
        writers_model: model for the study of the built-in writers that is there already.

    Returns:
        The pictures' paths.

    Raises:
        ClientSettingsError: a name, a study or the scale is unknown.
        DataError: the data is missing or broken.
    """
    modules = _modules(names or NAMES)
    unknown = [name for name in only if name not in STUDIES]
    if unknown:
        raise ClientSettingsError(f"study {unknown[0]} is unknown: choose of {', '.join(STUDIES)}.")
    studies = studies_of(scale, real_data, out / "shared", qmnist_model=qmnist_model, writers_model=writers_model)
    if users is not None:
        studies = {name: replace(study, num_users=min(users, study.num_users)) for name, study in studies.items()}
    known: dict[str, Measured] = {}

    def measured(study: Study) -> Measured:
        key = f"{study} of {study.num_users} users"
        if key not in known:
            known[key] = measure(study, out)
        return known[key]

    pages, pictures = [HEADER.format(scale=scale)], []
    for name, module in modules.items():
        for key, study in _studies_for(module, studies, only):
            variants: dict[str, Study] = module.variants(study) if hasattr(module, "variants") else {}
            result: FigureResult = module.draw(measured(study), **{k: measured(v) for k, v in variants.items()})
            file = f"figure-{name}-{key}"
            models = {"qmnist_model": qmnist_model if key == "qmnist" else None,
                      "writers_model": writers_model if key == "writers" else None}  # fmt: skip
            about = {
                "scale": scale,
                "note": getattr(module, "NOTE", ""),
                "command": _command(scale, key, users, real_data=real_data, **models, out=out),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
                "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
            }
            save_result(result, file, module.TITLE, measured(study), about, out)
            pages.append(page(file, module.TITLE, made_on(measured(study)), result.claims))
            pictures.append(out / f"{file}.png")
    write_text_atomically(out / "results.md", "\n".join(pages))
    return pictures


def _command(scale: str, study: str, users: int | None, **paths: Path | None) -> list[str]:
    """Return the words that measure a study again, its paths relative to where we are."""
    named = [f"--{name.replace('_', '-')} {as_seen_from_here(path)}" for name, path in paths.items() if path]
    fewer = [f"--users {users}"] if users else []
    only = [f"--study {study}"] if study in STUDIES else []
    return ["persephonee figures", f"--scale {scale}", *only, *fewer, *named]


def _studies_for(module: ModuleType, studies: dict[str, Study], only: Sequence[str]) -> Iterator[tuple[str, Study]]:
    """Yield the studies that a figure is drawn on; where there are none of its own, what can stand in for them."""
    wanted = [name for name in module.STUDIES if name in studies]
    if not wanted and not getattr(module, "NEEDS_OWN_STUDY", False):
        wanted = list(studies)
    drawn = set()
    for name in wanted:
        study = studies[name]
        if study.name not in drawn and (not only or name in only):
            drawn.add(study.name)
            yield study.name, study


def _modules(names: Sequence[str]) -> dict[str, ModuleType]:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ClientSettingsError(f"figure {unknown[0]} is unknown: choose of {', '.join(NAMES)}.")
    return {name: importlib.import_module(f"experiments.figure_{name}") for name in names}
