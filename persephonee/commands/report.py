"""`persephonee report`: draw a run's report again from its tables."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
) -> None:
    """Draw the report of a run again from its tables; nothing is computed anew."""
    from persephonee.server.report.report_page import draw_report
    from persephonee.server.results.results import summarise
    from persephonee.server.results.run_folder import RunFolder
    from persephonee.server.results.terminal_table import print_summary

    page = draw_report(run)
    folder = RunFolder.open(run)
    print_summary(summarise(folder.tables(), folder.config))
    typer.echo(f"Report: {page}")
