"""The command line `persephonee`: one verb for each thing that a person does.

A verb is one function in a file of its own, named for the verb, which imports what it needs only when it is called:
the verbs of a device work where Flower, Ray and matplotlib are not installed.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from persephonee.commands.calibrate import calibrate
from persephonee.commands.device import device_app
from persephonee.commands.doctor import doctor
from persephonee.commands.enrol import enrol
from persephonee.commands.errors import OneSentenceGroup
from persephonee.commands.export import export
from persephonee.commands.figures import figures
from persephonee.commands.inspect import inspect
from persephonee.commands.models.model import model_app
from persephonee.commands.personalise import personalise
from persephonee.commands.pretrain import pretrain
from persephonee.commands.projects.new import new
from persephonee.commands.report import report
from persephonee.commands.results.compare import compare
from persephonee.commands.results.evaluate import evaluate
from persephonee.commands.results.predict import predict
from persephonee.commands.server import server_group
from persephonee.commands.simulate import simulate
from persephonee.commands.terminal import replace_unknown_letters, show_log_lines
from persephonee.fl_app.settings.run_config import RENAMED

_RENAMED_OPTIONS = {**RENAMED, "max-writers": "max-users"}

app = typer.Typer(
    name="persephonee",
    cls=OneSentenceGroup,
    help="Personalised early-exit networks on the user's device, with Flower and without it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # scripts that were written for version 0.1 go on
    context_settings={"token_normalize_func": lambda name: _RENAMED_OPTIONS.get(name, name)},
)
for verb in (pretrain, calibrate, inspect, personalise, report, compare, evaluate, predict, export, figures, new):
    app.command()(verb)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(simulate)
for verb in (enrol, doctor):
    device_app.command()(verb)
app.add_typer(device_app, name="device")
app.add_typer(model_app, name="model")
app.add_typer(server_group, name="server")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"persephonee {version('persephonee')}")
        raise typer.Exit


@app.callback()
def _every_verb(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    show_log_lines()


def main() -> None:
    """Run the verb that the command line names."""
    replace_unknown_letters()
    app()
