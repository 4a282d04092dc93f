"""`persephonee device doctor`: what keeps a device from taking part, each finding with its remedy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.options import AsJson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persephonee.fl_app.deployment.findings import Finding

SOMETHING_WRONG = 1
_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}


def doctor(
    *,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="That `device enrol` made; without it, the machine alone.")
    ] = None,
    node_configs: Annotated[
        list[Path] | None,
        typer.Option(help="A node.toml of another device, or a folder with many: no client id may be there twice."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what keeps a device from taking part; exits with 1 where something is wrong."""
    from persephonee.fl_app.deployment.doctor import examine
    from persephonee.fl_app.deployment.findings import WRONG

    findings = examine(folder, node_configs or [])
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    if any(finding.level == WRONG for finding in findings):
        raise typer.Exit(SOMETHING_WRONG)


def _show(findings: "Sequence[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from persephonee.commands.errors import printable

    table = Table("", "check", "found", "what to do")
    for finding in findings:
        level = Text(finding.level, style=_COLOURS[finding.level])
        table.add_row(level, finding.check, Text(printable(finding.found)), Text(printable(finding.remedy)))
    Console().print(table)
