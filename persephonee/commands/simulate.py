"""`persephonee simulate`: the whole federation on this machine, from start to report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import (
    DEFAULT_SOURCES,
    TRAINING,
    Seed,
    Sources,
    data_settings,
    loss_settings,
    schedule_settings,
    split_settings,
)
from persephonee.commands.pretrain import Backbone, Head, NumExits
from persephonee.commands.sharing_options import privacy_settings, sharing_settings
from persephonee.server.training.pretraining_settings import PretrainSettings

if TYPE_CHECKING:
    from persephonee.clients.personalisation.settings import PersonalisationSettings
    from persephonee.data_partitions.opening import DataSettings
    from persephonee.data_partitions.user_splits import SplitSettings
    from persephonee.fl_app.settings.app_settings import AppSettings, LossSettings, PathSettings, RoundSettings
    from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings
    from persephonee.server.training.global_model import GlobalModelSettings


def network_settings(
    *,
    backbone: Backbone = "mobilenet_v2",
    num_exits: NumExits = 6,
    head: Head = "msdnet",
    pretrain_writers: Annotated[
        int, typer.Option(help="Without --model: users whose data makes one.", rich_help_panel=TRAINING)
    ] = 40,
    pretrain_epochs: Annotated[
        int, typer.Option(help="Without --model: at most so many epochs.", rich_help_panel=TRAINING)
    ] = 3,
) -> "GlobalModelSettings":
    """Make the settings of a model that is trained because none was named: minutes, not hours."""
    from persephonee.server.training.global_model import GlobalModelSettings, UserFractions

    return GlobalModelSettings(
        backbone=backbone,
        num_exits=num_exits,
        head=head,
        users=UserFractions(max_users=pretrain_writers),
        # few samples make few steps: smaller batches make more of them
        training=PretrainSettings(epochs=pretrain_epochs, batch_size=64, learning_rate=0.05),
    )


def round_settings(
    *,
    clients: Annotated[int, typer.Option(help="Users who personalise.")] = 20,
    rounds: Annotated[int, typer.Option(help="Personalisation rounds.")] = 1,
    held_out_fraction: Annotated[
        float, typer.Option(help="Fraction of them who never take part and serve to measure, in [0, 1).")
    ] = 0.0,
    min_reply_fraction: Annotated[
        float, typer.Option(help="The run fails if a smaller fraction of the clients answers, in [0, 1].")
    ] = 0.5,
    enough_fraction: Annotated[
        float,
        typer.Option(help="A round ends once this fraction sent a valid reply, in (0, 1]; who is late is dropped."),
    ] = 1.0,
    round_deadline: Annotated[
        float, typer.Option(help="Seconds after which a round ends with the replies that are there.")
    ] = 3600.0,
    node_wait: Annotated[
        float, typer.Option(help="Seconds to wait for clients to appear and to say who they are.")
    ] = 300.0,
) -> "RoundSettings":
    """Make the settings of the rounds."""
    from persephonee.fl_app.settings.app_settings import RoundSettings

    if clients < 1:
        raise typer.BadParameter(f"--clients {clients} is too small; give 1 or more.")
    return RoundSettings(
        num_server_rounds=rounds,
        clients=clients,
        held_out_fraction=held_out_fraction,
        min_reply_fraction=min_reply_fraction,
        enough_fraction=enough_fraction,
        round_deadline=round_deadline,
        node_wait=node_wait,
    )


def path_settings(
    *,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the global model; without it, one is pretrained first.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder for the run; runs/ and the time by default.")] = None,
    sources: Sources = DEFAULT_SOURCES,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, with the settings that it began with.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
) -> "PathSettings":
    """Say where things lie."""
    from persephonee.fl_app.settings.app_settings import PathSettings

    if resume is not None and (overwrite or run_dir not in (None, resume)):
        raise typer.BadParameter("--resume DIR names the run folder itself; leave out --run-dir and --overwrite.")
    return PathSettings(
        model=model, run_dir=resume or run_dir, sources=sources, resume=resume is not None, overwrite=overwrite
    )


@with_groups(
    paths=path_settings,
    rounds=round_settings,
    sharing=sharing_settings,
    privacy=privacy_settings,
    data=data_settings,
    split=split_settings,
    loss=loss_settings,
    schedule=schedule_settings,
    network=network_settings,
)
def simulate(
    *,
    paths: "PathSettings",
    rounds: "RoundSettings",
    sharing: "SharingSettings",
    privacy: "PrivacySettings",
    data: "DataSettings",
    split: "SplitSettings",
    loss: "LossSettings",
    schedule: "PersonalisationSettings",
    network: "GlobalModelSettings",
    seed: Seed = 0,
    ray_address: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of a Ray cluster that is there; its machines see model, data and run folder as this one."
        ),
    ] = "",
) -> None:
    """Simulate a federation with Flower and Ray, and draw the report."""
    from persephonee.fl_app.settings.app_settings import AppSettings
    from persephonee.fl_app.simulation.resuming import resumed_settings
    from persephonee.fl_app.simulation.simulate import simulate as run_simulation
    from persephonee.server.report.report_page import REPORT_NAME
    from persephonee.server.results.results import summarise
    from persephonee.server.results.run_folder import RunFolder
    from persephonee.server.results.terminal_table import print_summary

    settings = AppSettings(
        data=data,
        split=split,
        loss=loss,
        personalisation=schedule,
        pretraining=network,
        rounds=rounds,
        sharing=sharing,
        privacy=privacy,
        paths=paths,
        seed=seed,
    )
    if paths.resume:
        settings = resumed_settings(settings, _without_options())
    run = run_simulation(settings, ray_address)
    print_summary(summarise(RunFolder.open(run).tables()))
    typer.echo(f"Report: {run / REPORT_NAME}")


def _without_options() -> "AppSettings":
    """Return the settings that the verb makes when no option is given."""
    from persephonee.fl_app.settings.app_settings import AppSettings

    return AppSettings(
        data=data_settings(),
        split=split_settings(),
        loss=loss_settings(),
        personalisation=schedule_settings(),
        pretraining=network_settings(),
        rounds=round_settings(),
        paths=path_settings(),
    )
