"""How all figures of the report look: colours, sizes, and how they are saved and put into a page.

The colours are those of Okabe and Ito, told apart by colour-blind readers too; one thing has one colour throughout.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from persephonee.multi_exit.atomic_files import write_bytes_atomically

BEFORE = "#d55e00"
AFTER = "#0072b2"
ORIGINAL = "#222222"
FRONT = "#009e73"
GRID = "#dddddd"
PAPER = "#ffffff"

# What each colour is called in the page's style sheet, where dark mode has its own values for them.
PAGE_VARIABLES = {
    BEFORE: "--before",
    AFTER: "--after",
    ORIGINAL: "--ink",
    FRONT: "--front",
    GRID: "--grid",
    PAPER: "--card",
}

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "persephonee",  # element ids are random without it, and the same tables would give other bytes
    "svg.fonttype": "none",  # text stays text, to be searched, copied and read aloud
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.5,
    "text.color": ORIGINAL,
    "axes.labelcolor": ORIGINAL,
    "axes.edgecolor": ORIGINAL,
    "xtick.color": ORIGINAL,
    "ytick.color": ORIGINAL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}

SIZE_INCHES = (7.6, 3.7)


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw and save in the report's style, whatever the caller's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def new_figure(width_fraction: float = 1.0) -> Figure:
    """Return an empty figure of the report's size; without pyplot, so no display and no global state."""
    return Figure(figsize=(SIZE_INCHES[0] * width_fraction, SIZE_INCHES[1]), layout="constrained")


def shared_legend(figure: Figure, ncols: int = 4) -> None:
    """Put one legend below all axes of `figure`; what several of them show stands in it once."""
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols)


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write `name`.png and `name`.svg into `folder`, and return the SVG's text.

    Equal figures give equal bytes: dates and random ids are left out.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    write_bytes_atomically(folder / f"{name}.png", png.getvalue())
    write_bytes_atomically(folder / f"{name}.svg", svg.getvalue())
    return svg.getvalue().decode()


def for_page(svg: str, name: str, title: str) -> str:
    """Return an SVG as markup to stand inside an HTML page.

    Its colours become the page's variables, its ids get `name` in front (a page has several figures, and an id may
    stand there only once), and it scales with the page.

    Args:
        svg: the text of a whole SVG file, as matplotlib writes it.
        name: letters and hyphens; unique in the page.
        title: what the figure shows, for readers who hear the page; plain text without markup.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    for colour, variable in PAGE_VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    opening, rest = body.split(">", 1)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{title}">{rest.rstrip()}'
