"""Write docs/performance.md from what the benchmarks measured: `python -m persephonee.benchmarks.page.page OUT`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from persephonee.benchmarks.benchmark_commands import Outcome, read_outcomes
from persephonee.benchmarks.inference.report import device_section, inference_section
from persephonee.benchmarks.page.drawings import draw_costs, draw_latency, draw_scaling, draw_simulation
from persephonee.benchmarks.page.markdown import table_of
from persephonee.benchmarks.page.numbers import Results
from persephonee.benchmarks.page.sections import cost_section, gpu_section, scaling_section, simulation_section
from persephonee.benchmarks.page.targets import TARGETS
from persephonee.benchmarks.result_tables import Result, read_result
from persephonee.benchmarks.users import ROOT
from persephonee.commands.terminal import run_program
from persephonee.experiments.results_page.page_marks import BEGIN, END, written_part
from persephonee.multi_exit.atomic_files import write_text_atomically

COSTS = ("personalisation-28", "personalisation-mobilenet_v2-224", "personalisation-resnet50-224")
NAMES = (*COSTS, "simulation", "gpu", "growth", "inference", "device")
IMAGES = "images"
COSTS_WORDS = """\
## Personalisation

`python -m persephonee.benchmarks.personalisation_cost.benchmark`: each way in a process of its own, in turn. Times
begin with the loaded
model (ours with BatchNorm folded into the frozen backbone) and a user's images, and end with trained weights;
calibration and report, the same for all, are left out. The arithmetic limit is what the plan's multiply-adds would take
at the rate of a float32 product of two 2,048 x 2,048 matrices on this machine. Accuracy is that of what was trained
(the mean over the exits), on the user's test samples.
"""


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the results.")],
    page: Annotated[Path, typer.Option(help="The page; its figures go into images/ beside it.")] = ROOT
    / "docs"
    / "performance.md",
) -> None:
    """Write the page and its figures."""
    results = {name: result for name in NAMES if (result := read_result(out, name)) is not None}
    earlier = page.read_text(encoding="utf-8") if page.exists() else ""
    if earlier and BEGIN not in earlier:
        raise typer.BadParameter(f"{page} is a page of another kind, and would be replaced: name another file.")
    write_text_atomically(page, page_of(results, read_outcomes(out), page.parent / IMAGES, written_part(earlier)))
    typer.echo(f"{page}: {len(results)} of {len(NAMES)} results")


def page_of(results: Results, outcomes: list[Outcome], images: Path, written: str = "") -> str:
    """Draw the figures and return the page's text.

    Args:
        results: by name; a section is left out where its result is missing.
        outcomes: how the parts of the run went; those that failed or were left out are named.
        images: folder of the figures.
        written: what a person wrote below the targets, which is kept as it is.
    """
    parts = [
        "# Speed and memory\n",
        "`make bench` measures all of this on one machine and writes this page. A person writes only what stands "
        "between the marks below the targets, with its date and machine; it stays when the rest is replaced. "
        "Everything that is compared was run in turn, in one run. Each table says how many users there were; "
        '`make bench BENCH_ARGS="--scale brief"` takes fewer.\n',
        "## Targets\n",
        targets_table(results),
        f"{BEGIN}\n{written}\n{END}\n",
        *_not_there(outcomes),
    ]
    costs = [name for name in COSTS if name in results]
    if costs:
        parts.append(COSTS_WORDS)
    parts += [_with_figure(results[name], cost_section, draw_costs, images, name) for name in costs]
    if "simulation" in results:
        parts.append(_with_figure(results["simulation"], simulation_section, draw_simulation, images, "simulation"))
    if "gpu" in results:
        parts.append(gpu_section(results["gpu"]))
    if "growth" in results:
        parts.append(_with_figure(results["growth"], scaling_section, draw_scaling, images, "growth"))
    if "inference" in results:
        parts.append(_with_figure(results["inference"], inference_section, draw_latency, images, "latency"))
    if "device" in results:
        parts.append(device_section(results["device"]))
    return "\n".join(parts)


def targets_table(results: Results) -> str:
    """Return the table of the targets: what is wanted, what was measured, and whether that is enough."""
    rows = []
    for target in TARGETS:
        measured, verdict = target.verdict(results)
        rows.append([target.text, target.wanted(), measured, verdict])
    return table_of(["target", "wanted", "measured", "verdict"], rows)


def _not_there(outcomes: list[Outcome]) -> list[str]:
    return [f"- {outcome.name}: {outcome.state}, {outcome.reason}\n" for outcome in outcomes if outcome.state != "done"]


def _with_figure(
    result: Result,
    section: Callable[[Result, str], str],
    draw: Callable[[Result, Path, str], None],
    images: Path,
    name: str,
) -> str:
    file = f"performance-{name}"
    draw(result, images, file)
    return section(result, f"{images.name}/{file}.svg")


if __name__ == "__main__":
    run_program(main)
