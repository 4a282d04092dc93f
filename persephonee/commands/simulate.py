"""`persephonee simulate`: the whole federation on this machine, from start to report.

Its options are the settings that people change often; `--set` and `--config` take every key of a run configuration,
and `--KEY VALUE` does the same as `--set KEY=VALUE`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.option_groups import OptionGroup, with_groups
from persephonee.commands.options import (
    COMPUTE_CLASS,
    DATA,
    DATA_CLASS,
    DEFAULT_SOURCES,
    PERSONALISATION,
    SCHEDULE_CLASS,
    SPLIT_CLASS,
    Seed,
    Sources,
)
from persephonee.commands.results.track import Track, require_tracker, track_results
from persephonee.commands.run_settings import (
    DEFAULT_CLIENTS,
    given_options,
    keys_among,
    resumed_settings,
    settings_of_run,
)

if TYPE_CHECKING:
    from persephonee.fl_app.settings.app_settings import PathSettings

APP = "persephonee.fl_app.settings"


@with_groups(
    paths=OptionGroup(f"{APP}.app_settings:PathSettings", only=("model", "run_dir", "overwrite")),
    rounds=OptionGroup(f"{APP}.app_settings:RoundSettings", only=("rounds",)),
    sharing=OptionGroup(f"{APP}.sharing_settings:SharingSettings", only=("share_exits",)),
    data=OptionGroup(DATA_CLASS, DATA, only=("dataset", "data_path", "user_column", "label_column")),
    split=OptionGroup(SPLIT_CLASS, DATA, only=("labels",)),
    schedule=OptionGroup(SCHEDULE_CLASS, PERSONALISATION, only=("schedule", "drop_tolerance")),
    compute=OptionGroup(COMPUTE_CLASS),
)
def simulate(
    *,
    context: typer.Context,
    paths: "PathSettings",
    clients: Annotated[int, typer.Option(help="Users who personalise, 1 or more.")] = DEFAULT_CLIENTS,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, with the settings that it began with.")
    ] = None,
    seed: Seed = 0,
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
    track: Track = None,
) -> None:
    """Simulate a federation with Flower and Ray, and draw the report."""
    from persephonee.fl_app.simulation.simulate import simulate as run_simulation
    from persephonee.server.results.results import summarise
    from persephonee.server.results.run_folder import REPORT_NAME, RunFolder
    from persephonee.server.results.terminal_table import print_summary

    require_tracker(track)
    sets = [*(sets or ()), *keys_among(context.args)]
    given = given_options(context, "resume", "ray_address", "sets", "config", "track")
    if resume is not None and (paths.overwrite or config is not None or paths.run_dir not in (None, resume)):
        raise typer.BadParameter(
            "--resume DIR names the run folder and its settings; leave out --run-dir, --overwrite and --config."
        )
    settings = resumed_settings(resume, sets, given) if resume is not None else settings_of_run(given, sets, config)
    if settings.rounds.clients < 1:
        raise typer.BadParameter(f"--clients {settings.rounds.clients} is too small; give 1 or more.")
    run = run_simulation(settings, ray_address)
    track_results(track, run)
    folder = RunFolder.open(run)
    print_summary(summarise(folder.tables(), folder.config))
    typer.echo(f"Report: {run / REPORT_NAME}")
