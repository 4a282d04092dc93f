"""`persephonee compare`: runs side by side, paired over the same users."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from persephonee.commands.options import AsJson, Seed


def compare(
    *,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs; the first is compared with.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page, its figures as PNG and SVG, and comparison.json.")
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Compare runs on the same data: accuracy, cost, and users helped and hurt, with intervals over the same users."""
    from persephonee.server.results.comparison import compare as compare_runs
    from persephonee.server.results.comparison_text import print_comparison
    from persephonee.server.results.run_folder import RunFolder

    found = compare_runs([RunFolder.open(run) for run in runs], seed)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        print_comparison(found)
    if out is not None:
        from persephonee.server.report.comparison_page import draw_comparison

        typer.echo(f"Comparison: {draw_comparison(found, out)}", err=as_json)
