"""The paper's figures from one call: `persephonee figures [NAMES] --scale S --out DIR`.

DIR/shared/       models and measurements, which a second call takes up again
DIR/figure-N.*    the picture as PNG and SVG, its numbers as parquet, its claims as parquet and Markdown
DIR/results.md    all claims, the paper's beside ours
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from clients.errors import ClientSettingsError
from experiments.figure_measurements import Measured, measure
from experiments.figure_results import page, save_result
from experiments.figure_studies import studies_of
from multi_exit.atomic_files import write_text_atomically

NAMES = ("3a", "3b", "4", "5", "6a", "6b", "7", "headline")
"""The figures, in the paper's order; each is a module `experiments.figure_NAME`."""

HEADER = """\
# Results

Made by `persephonee figures --scale {scale}`. A claim's direction is the same where ours points where the paper's does;
its size may differ, and the last column says what on.
"""


def run_figures(names: Sequence[str], scale: str, out: Path, real_data: Path | None = None) -> list[Path]:
    """Measure what is missing, draw the figures, and write the results page.

    Args:
        names: of `NAMES`; none draws all.
        scale: smoke, quick or full.
        out: folder for everything.
        real_data: folder with `qmnist-by-writer`, `tiny-imagenet-200` and `weights`; None takes the built-in writers.

    Returns:
        The pictures' paths.

    Raises:
        ClientSettingsError: a name or the scale is unknown.
        DataError: the data is missing or broken.
    """
    modules = _modules(names or NAMES)
    studies = studies_of(scale, real_data, out / "shared")
    measured: dict[str, Measured] = {}
    pages, pictures = [HEADER.format(scale=scale)], []
    for name, module in modules.items():
        study = studies[module.STUDY]
        if study.name not in measured:
            measured[study.name] = measure(study, out)
        result = module.draw(measured[study.name])
        file = name if name == "headline" else f"figure-{name}"
        save_result(result, file, module.TITLE, study.title, out)
        pages.append(page(file, module.TITLE, study.title, result.claims))
        pictures.append(out / f"{file}.png")
    write_text_atomically(out / "results.md", "\n".join(pages))
    return pictures


def _modules(names: Sequence[str]) -> dict[str, ModuleType]:
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ClientSettingsError(f"figure {unknown[0]} is unknown: choose of {', '.join(NAMES)}.")
    return {name: importlib.import_module(f"experiments.figure_{name}") for name in names}
