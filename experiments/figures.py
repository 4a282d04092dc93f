"""The paper's figures and those beyond, from one call: `persephonee figures [NAMES] --scale S --out DIR`.

DIR/shared/            models and measurements, which a second call takes up again
DIR/FIGURE-STUDY.*     the picture as PNG and SVG, its numbers as parquet, its claims as parquet and Markdown, and what
                       it was made on as JSON
DIR/results.md         all of them on one page; `python -m persephonee.experiments.results_page.page` makes the
                       project's page of it
DIR/calls.json         each call that was not killed, and how long it took
"""

import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from persephonee.clients.errors import ClientSettingsError
from persephonee.experiments.results_page.sources import as_seen_from_here
from persephonee.experiments.studies.figure_results import FigureResult, made_on, page, save_result
from persephonee.experiments.studies.measurements import Measured, measure
from persephonee.experiments.studies.studies import STUDIES, Study, studies_of
from persephonee.multi_exit.atomic_files import check_writable, write_json_atomically, write_text_atomically
from persephonee.multi_exit.storage import SavedModel

PAPERS = ("3a", "3b", "4", "5", "6a", "6b", "7", "headline")
BEYOND = ("deployed", "users", "seeds", "shift", "heads", "guard", "width", "samples", "risk")
NAMES = PAPERS + BEYOND
"""The paper's figures in its order, and those beyond it; each is a module `figure_NAME` in `paper/` or `beyond/`."""

CALLS_NAME = "calls.json"
PAGE_NAME = "results.md"

HEADER = """\
# Figures

Made by `persephonee figures --scale {scale}`. A claim of the paper *holds* where ours points where its value does and
goes as far, *holds in part* where it does not go as far, and *does not hold* otherwise.
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
    seed: int = 0,
    processes: int = 1,
) -> list[Path]:
    """Measure what is missing, draw the figures, and write their page.

    Args:
        names: the figures to draw, from `NAMES`; an empty sequence draws all.
        scale: smoke, quick or full.
        out: folder for everything.
        real_data: as `studies_of` takes it; None takes the built-in writers.
        users: at most this many of each study; a later call with more continues from there. None takes the scale's.
        only: studies to draw, of `STUDIES`; none draws all that there are data for.
        qmnist_model: an existing model for the study of QMNIST; None trains one.
        writers_model: an existing model for the study of the built-in writers; None trains one.
        seed: seed of every study, as `Study.seeded` takes it.
        processes: how many processes measure users at the same time, with one torch thread each; with 1 this one does.

    Returns:
        The pictures' paths.

    Raises:
        ClientSettingsError: a name, a study or the scale is unknown.
        DataError: the data is missing or broken.
    """
    begin = time.monotonic()
    modules = _modules(names or NAMES)
    unknown = [name for name in only if name not in STUDIES]
    if unknown:
        raise ClientSettingsError(f"study {unknown[0]} is unknown: choose of {', '.join(STUDIES)}.")
    check_output(out)
    _refuse_idle(scale, real_data, qmnist_model=qmnist_model, writers_model=writers_model)
    studies = studies_of(scale, real_data, out / "shared", qmnist_model=qmnist_model, writers_model=writers_model)
    if not any(list(_studies_for(module, studies, only)) for module in modules.values()):
        raise ClientSettingsError(
            f"none of the figures is drawn on {', '.join(only)} at this scale: leave out --study, or name --real-data."
        )
    studies = {name: study.seeded(seed) for name, study in studies.items()}
    if users is not None:
        studies = {name: replace(study, num_users=min(users, study.num_users)) for name, study in studies.items()}
    known: dict[str, Measured] = {}

    def measured(study: Study) -> Measured:
        key = f"{study} of {study.num_users} users"
        if key not in known:
            known[key] = measure(study, out, processes)
        return known[key]

    pages, pictures = [HEADER.format(scale=scale)], []
    for name, module in modules.items():
        for key, study in _studies_for(module, studies, only):
            variants: dict[str, Study] = module.variants(study) if hasattr(module, "variants") else {}
            result: FigureResult = module.draw(measured(study), **{k: measured(v) for k, v in variants.items()})
            file = f"figure-{name}-{key}"
            about = {
                "scale": scale,
                "note": getattr(module, "NOTE", ""),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
            }
            save_result(result, file, module.TITLE, measured(study), about, out)
            pages.append(page(file, module.TITLE, made_on(measured(study)), result.claims))
            pictures.append(out / f"{file}.png")
    write_text_atomically(out / PAGE_NAME, "\n".join(pages))
    paths = {"real_data": real_data, "qmnist_model": qmnist_model, "writers_model": writers_model, "out": out}
    words = _command(names, scale, only, users, seed, **paths)
    _write_call(out / CALLS_NAME, words, time.monotonic() - begin)
    return pictures


def check_output(out: Path) -> None:
    """Refuse a folder that cannot be written, or whose page is none of ours.

    Raises:
        ClientSettingsError: results.md is somebody else's.
        OSError: the folder cannot be written.
    """
    page = out / PAGE_NAME
    if page.exists() and not page.read_text(errors="replace").startswith(HEADER.partition("{")[0]):
        raise ClientSettingsError(f"{page} is a page of another kind, and would be replaced: name another --out.")
    check_writable(out)


def _refuse_idle(scale: str, real_data: Path | None, **models: Path | None) -> None:
    """Refuse paths that this scale, or the lack of real data, would leave unread, and models that are none."""
    for name, folder in {"real_data": real_data, **models}.items():
        option = f"--{name.replace('_', '-')}"
        if folder is not None and scale == "smoke":
            raise ClientSettingsError(f"{option} does nothing with --scale smoke; leave it out, or take quick or full.")
        if folder is not None and name in models:
            SavedModel.read(folder)
    if real_data is None and models["qmnist_model"] is not None:
        raise ClientSettingsError("--qmnist-model does nothing without --real-data; name both.")


def _command(
    names: Sequence[str], scale: str, only: Sequence[str], users: int | None, seed: int, **paths: Path | None
) -> list[str]:
    """Return the words of the call, its paths relative to where we are."""
    studies = [f"--study {study}" for study in only]
    fewer = [f"--users {users}"] if users else []
    seeded = [f"--seed {seed}"] if seed else []
    named = [f"--{name.replace('_', '-')} {as_seen_from_here(path)}" for name, path in paths.items() if path]
    return [" ".join(["persephonee figures", *names]), f"--scale {scale}", *studies, *fewer, *seeded, *named]


def _write_call(path: Path, words: list[str], seconds: float) -> None:
    calls = json.loads(path.read_text()) if path.exists() else []
    write_json_atomically(path, [*calls, {"command": words, "seconds": round(seconds)}])


def _studies_for(module: ModuleType, studies: dict[str, Study], only: Sequence[str]) -> Iterator[tuple[str, Study]]:
    """Yield the studies that a figure is drawn on; where there are none of its own, what can stand in for them."""
    can_draw: Callable[[Study], bool] = getattr(module, "can_draw", lambda study: True)
    wanted = [name for name in module.STUDIES if name in studies and can_draw(studies[name])]
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
    rooms = {name: "paper" if name in PAPERS else "beyond" for name in names}
    return {
        name: importlib.import_module(f"persephonee.experiments.{room}.figure_{name}") for name, room in rooms.items()
    }
