r"""The results page, from tables alone.

    python -m persephonee.experiments.results_page.page FIGURES RUN ... MODEL ... META --out docs/results.md --readme
    README.md

Each folder is recognised by what it holds. A section whose tables are not given stays as it is on the page, or is named
as missing where the page has none yet. Pictures are copied into images/ beside the page and the numbers into tables/;
in the README the part between the two markers is replaced.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from persephonee.clients.errors import ClientSettingsError
from persephonee.commands.terminal import run_program
from persephonee.experiments.figures import BEYOND, PAPERS
from persephonee.experiments.results_page.figures_section import (
    PREFIX,
    claims_table,
    figures_of,
    render_commands,
    render_figures,
    render_studies,
)
from persephonee.experiments.results_page.kept_tables import keep_tables
from persephonee.experiments.results_page.page_marks import BEGIN as BEGIN_WRITTEN
from persephonee.experiments.results_page.page_marks import END as END_WRITTEN
from persephonee.experiments.results_page.page_marks import written_part
from persephonee.experiments.results_page.runs_section import render_models, render_runs
from persephonee.experiments.results_page.sharing_section import render_attacks, render_sharing, render_starts
from persephonee.experiments.results_page.sources import Sources, recognise
from persephonee.multi_exit.atomic_files import check_writable, write_text_atomically

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
README_STUDIES = ("mobilenet_v2",)

HEADER = """\
# Results

What personalisation gives on the data that was at hand, the deployed system first, and then the paper's evaluation
with its values beside ours. Accuracies and differences are means over users who chose nothing and trained nothing; the
interval in brackets is the 95% of a bootstrap over users, paired where two things are compared. A claim of the paper
*holds* where ours points where its value does and goes as far, *holds in part* where it does not go as far, and *does
not hold* otherwise; an exit *reaches* what the interval of its difference does not exclude.

A command writes this page from tables, which are kept in [tables/](tables); a person writes only what stands between
the marks in "What it cannot do, and what did not help". To make it again, run the commands below and then

```sh
python -m persephonee.experiments.results_page.page FOLDERS --out docs/results.md --readme README.md
```
"""

STAND_INS = """\
| in the paper | here |
|---|---|
| ImageNet, 1,000 classes, 224 px | Tiny ImageNet: 200 of the classes, 64 px, scaled up to 96 px |
| ResNet-50 with ImageNet weights | ResNet-50 v1 with its weights, classifier cut to 200 classes and fine-tuned until \
it no longer improves; the weights have probably seen the users' images, which are a part of ImageNet |
| personalised ImageNet, 250 users | users drawn in the same way; the width of their popularity, which the paper does \
not print, is 5 of 200 classes |
| exits that learn from ImageNet's 1,300 images a class | from 100 a class, and from the original's answers to them |
| self-distillation at a temperature that the paper does not print | at 4 on photographs, at 1 on handwriting |
| FEMNIST, 3,250 writers and 250 users | QMNIST (10 digits, real writers); built-in writers (62 characters, drawn) |
| a Jetson Xavier's CPU | this machine's CPU |
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    title: str
    render: Callable[[Sources, Path], list[str]]
    missing: str
    """What to run when there are no tables for it."""


DEPLOYED = ("deployed",)
FIGURES = "`persephonee figures --scale quick --real-data DIR --out DIR`"
SECTIONS = (
    Section(
        title="Data and networks",
        render=lambda sources, _: render_studies(sources) and [*render_studies(sources), STAND_INS],
        missing=FIGURES,
    ),
    Section(
        title="The deployed system",
        render=lambda sources, images: render_figures(sources, DEPLOYED, images),
        missing=FIGURES,
    ),
    Section(
        title="The paper's figures",
        render=lambda sources, images: render_figures(sources, PAPERS, images),
        missing=FIGURES,
    ),
    Section(
        title="Beyond the paper",
        render=lambda sources, images: render_figures(
            sources, tuple(name for name in BEYOND if name not in DEPLOYED), images
        ),
        missing=FIGURES,
    ),
    Section(
        title="How the figures were made",
        render=lambda sources, _: render_commands(sources),
        missing="`persephonee figures`",
    ),
    Section(
        title="Global models of the simulations",
        render=lambda sources, _: render_models(sources),
        missing="the folders of the models that the simulations ran on",
    ),
    Section(
        title="Simulated federations, one round, metrics only",
        render=lambda sources, _: render_runs(sources),
        missing="`persephonee simulate --rounds 1`",
    ),
    Section(
        title="Sharing exits",
        render=render_sharing,
        missing="`persephonee simulate --rounds 10 --set held-out-fraction=0.2`, with `--share-exits` and without",
    ),
    Section(
        title="Where new users' exits start",
        render=render_starts,
        missing="`python -m persephonee.experiments.meta_learning.experiment`",
    ),
    Section(
        title="What an attacker finds out",
        render=render_attacks,
        missing="`python -m persephonee.experiments.membership.experiment`",
    ),
)


WRITTEN, WRITTEN_AFTER = "What it cannot do, and what did not help", "Beyond the paper"


def results_page(sources: Sources, images: Path, earlier: str = "") -> str:
    """Return the page in Markdown.

    What a person wrote on an earlier page stays, and so do its sections for which the sources have no tables.
    Pictures are written into `images`.
    """
    images.mkdir(parents=True, exist_ok=True)
    lines = [HEADER]
    for section in SECTIONS:
        body = section.render(sources, images) or _section_of(earlier, section.title)
        lines += [f"## {section.title}", "", *(body or [f"Missing: no tables were given. Run {section.missing}.", ""])]
        if section.title == WRITTEN_AFTER:
            lines += [f"## {WRITTEN}", "", BEGIN_WRITTEN, written_part(earlier), END_WRITTEN, ""]
    return "\n".join(lines).rstrip() + "\n"


def _section_of(page: str, title: str) -> list[str]:
    """Return the lines of a page's section, without its heading; none where the page lacks it."""
    _, _, rest = f"\n{page}".partition(f"\n## {title}\n")
    body = rest.partition("\n## ")[0].strip()
    return [body, ""] if body else []


def readme_part(sources: Sources, page: Path, images: Path, readme: Path) -> str:
    """Return the README's part: what is deployed, in a picture and a table.

    Raises:
        ClientSettingsError: there is no figure of what is deployed.
    """
    drawn = [one for one in figures_of(sources, "deployed") if one.facts["study"] in README_STUDIES]
    if not drawn:
        raise ClientSettingsError("No folder has the figure 'deployed' on photographs: draw it, or leave --readme.")
    here = readme.parent.resolve()
    picture = images / f"{PREFIX}{drawn[0].stem.removeprefix('figure-')}.png"
    shown, link = (path.resolve().relative_to(here) for path in (picture, page))
    lines = [f"![{drawn[0].facts['title']}: accuracy and cost of the policies in force]({shown})", ""]
    lines += [*claims_table(drawn), "", drawn[0].facts["note"].strip(), ""]
    lines += [f"Made on: {'; '.join(one.facts['made_on'] for one in drawn)}. The command, the paper's figures with its "
              f"values beside ours, and what it cannot do: [{link}]({link})."]  # fmt: skip
    return "\n".join(lines)


def replace_part(text: str, part: str) -> str:
    """Return the text with `part` between the two markers.

    Raises:
        ClientSettingsError: a marker is missing.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ClientSettingsError(f"The README needs the markers {BEGIN} and {END}, in this order; put them in.")
    return f"{text[: begin + len(BEGIN)]}\n{part}\n{text[end:]}"


def main(
    *,
    folders: Annotated[list[Path], typer.Argument(help="Folders of figures, runs, models and tables.")],
    out: Annotated[Path, typer.Option(help="The page.")],
    readme: Annotated[Path | None, typer.Option(help="Replace the part between the markers in this file too.")] = None,
) -> None:
    """Write the page, its pictures, and on request the README's part."""
    images = out.parent / "images"
    sources = recognise(folders)
    earlier = out.read_text() if out.exists() else ""
    if earlier and BEGIN_WRITTEN not in earlier:
        raise ClientSettingsError(f"{out} is a page of another kind, and would be replaced: name another file.")
    check_writable(out.parent)
    if readme is not None:
        replace_part(readme.read_text(), "")
    write_text_atomically(out, results_page(sources, images, earlier))
    keep_tables(sources, out.parent / "tables")
    if readme is not None:
        part = readme_part(sources, out, images, readme)
        write_text_atomically(readme, replace_part(readme.read_text(), part))


if __name__ == "__main__":
    run_program(main)
