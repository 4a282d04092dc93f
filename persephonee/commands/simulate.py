"""`persephonee simulate`: the whole federation on this machine, from start to report.

Its options are the settings that people change often; `--set` and `--config` take every key of a run configuration.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from persephonee.commands.options import DATA, DEFAULT_SOURCES, PERSONALISATION, Dataset, Labels, Seed, Sources
from persephonee.commands.run_settings import DEFAULT_CLIENTS, given_options, resumed_settings, settings_of_run


def simulate(
    *,
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the global model; without it, one is pretrained first.")
    ] = None,
    clients: Annotated[int, typer.Option(help="Users who personalise, 1 or more.")] = DEFAULT_CLIENTS,
    rounds: Annotated[int, typer.Option(help="Personalisation rounds, 1 or more.")] = 1,
    run_dir: Annotated[Path | None, typer.Option(help="Folder for the run; runs/ and the time by default.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, with the settings that it began with.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    share_exits: Annotated[
        bool, typer.Option("--share-exits", help="Ask users for their exits, and merge them.")
    ] = False,
    seed: Seed = 0,
    dataset: Annotated[Dataset, typer.Option(help="Which data.", rich_help_panel=DATA)] = "synthetic-writers",
    data_path: Annotated[
        Path | None, typer.Option(help="Where the data lies, if it is local.", rich_help_panel=DATA)
    ] = None,
    user_column: Annotated[
        str, typer.Option(help="parquet: the column that names the users.", rich_help_panel=DATA)
    ] = "writer_id",
    label_column: Annotated[
        str, typer.Option(help="parquet, imagefolder: the column of the classes.", rich_help_panel=DATA)
    ] = "character",
    labels: Labels = "all",
    schedule: Annotated[
        Literal["paper", "fast"],
        typer.Option(
            help="paper trains whole heads by SGD; fast trains their classifiers alone, in a few steps.",
            rich_help_panel=PERSONALISATION,
        ),
    ] = "paper",
    drop_tolerance: Annotated[
        float,
        typer.Option(
            help="Accuracy that may be lost against the last exit, in [0, 1].", rich_help_panel=PERSONALISATION
        ),
    ] = 0.01,
    sources: Sources = DEFAULT_SOURCES,
    ray_address: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of a Ray cluster that is there; its machines see model, data and run folder as this one."
        ),
    ] = "",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting, such as epochs=5; may be given several times."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings from a TOML file of keys, or from an earlier run's config.json.")
    ] = None,
) -> None:
    """Simulate a federation with Flower and Ray, and draw the report."""
    from persephonee.fl_app.simulation.simulate import simulate as run_simulation
    from persephonee.server.report.report_page import REPORT_NAME
    from persephonee.server.results.results import summarise
    from persephonee.server.results.run_folder import RunFolder
    from persephonee.server.results.terminal_table import print_summary

    given = given_options(context, "resume", "ray_address", "sets", "config")
    if resume is not None and (overwrite or config is not None or run_dir not in (None, resume)):
        raise typer.BadParameter(
            "--resume DIR names the run folder and its settings; leave out --run-dir, --overwrite and --config."
        )
    if resume is not None:
        settings = resumed_settings(resume, sets or (), given)
    else:
        settings = settings_of_run(given, sets or (), config)
    if settings.rounds.clients < 1:
        raise typer.BadParameter(f"--clients {settings.rounds.clients} is too small; give 1 or more.")
    run = run_simulation(settings, ray_address)
    print_summary(summarise(RunFolder.open(run).tables()))
    typer.echo(f"Report: {run / REPORT_NAME}")
