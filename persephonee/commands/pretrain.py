"""`persephonee pretrain`: derive the multi-exit network of a CNN and train the global model."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.meta import Start, meta_learn_and_show, meta_settings, refuse_given
from persephonee.commands.model_graphs import write_graphs_if_possible
from persephonee.commands.models.card import write_card_if_possible
from persephonee.commands.option_groups import OptionGroup, with_groups
from persephonee.commands.options import (
    DEFAULT_SOURCES,
    GLOBAL_MODEL,
    NETWORK,
    TRAINING,
    Seed,
    Sources,
    compute_settings,
    data_settings,
    own_modules,
    source_names,
)
from persephonee.commands.results.track import Track, TrackerName, require_tracker, tracked_progress
from persephonee.commands.run_settings import given_options

if TYPE_CHECKING:
    from persephonee.data_partitions.samples import Partitions
    from persephonee.data_partitions.settings import DataSettings
    from persephonee.multi_exit.network import MultiExitNetwork
    from persephonee.multi_exit.settings import ComputeSettings
    from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
    from persephonee.server.training.meta_settings import MetaSettings
    from persephonee.server.training.pretraining import PretrainResult
    from persephonee.server.training.pretraining_settings import PretrainSettings

log = logging.getLogger("persephonee.pretrain")

FEW_USERS = 60
"""Of the built-in writers about 12,000 samples an epoch: minutes on a laptop, where all of them take hours."""

network_settings = OptionGroup(
    f"{GLOBAL_MODEL}:GlobalModelSettings",
    NETWORK,
    leave_out=("users", "training", "sources"),
    no_default=("backbone", "num_exits"),
)
user_settings = OptionGroup(f"{GLOBAL_MODEL}:UserFractions", TRAINING, leave_out=("max_users",))
# the mode follows from the weights
training_settings = OptionGroup(
    "persephonee.server.training.pretraining_settings:PretrainSettings", TRAINING, leave_out=("mode",)
)


@with_groups(
    network=network_settings,
    users=user_settings,
    training=training_settings,
    meta=meta_settings,
    data=data_settings,
    compute=compute_settings,
)
def pretrain(
    *,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    network: "GlobalModelSettings",
    users: "UserFractions",
    training: "PretrainSettings",
    meta: "MetaSettings",
    data: "DataSettings",
    compute: "ComputeSettings",
    max_users: Annotated[
        int | None,
        typer.Option(
            help=f"Train and validate on at most so many users; {FEW_USERS} by default, in minutes; 0 takes all.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    sources: Sources = DEFAULT_SOURCES,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last epoch that was finished.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the folder.")] = False,
    start: Start = None,
    track: Track = None,
    seed: Seed = 0,
) -> None:
    """Derive the multi-exit network of a CNN and train the global model on many users' data.

    With --from MODEL --meta METHOD: meta-learn the exits of a trained model instead.
    """
    from persephonee.multi_exit.backbones import source_of

    require_tracker(track)
    if start is not None:
        named = (network_settings, user_settings, training_settings, compute_settings)
        of_pretraining = {*(name for group in named for name in group.names), "resume", "track"}
        refuse_given(context, sorted(of_pretraining - {"seed"}), "beside --from")
        meta_learn_and_show(
            context, start, meta, data, out, max_users=max_users or None, sources=sources, overwrite=overwrite
        )
        return
    refuse_given(context, sorted({*meta_settings.names} - {"seed"}), "without --from MODEL")
    for option in ("backbone", "num-exits"):
        if option not in given_options(context):
            raise typer.BadParameter(f"--{option} is missing; name it, or a trained model with --from.")
    settings = replace(
        network,
        users=replace(users, max_users=FEW_USERS if max_users is None else max_users or None),
        training=replace(training, seed=seed, mode="joint" if network.weights is None else "exits"),
        # whoever names a network of their own on this command line trusts it
        sources=source_names(sources, *own_modules(data.dataset, network.head), source_of(network.backbone)),
    )
    make_and_show(settings, data, out, compute, resume=resume, overwrite=overwrite, track=track)


def make_and_show(
    settings: "GlobalModelSettings",
    data: "DataSettings",
    out: Path,
    compute: "ComputeSettings",
    *,
    resume: bool,
    overwrite: bool,
    track: TrackerName | None = None,
) -> "Partitions":
    """Pretrain, print the accuracy of each exit, and return the data that was opened."""
    from rich.console import Console

    from persephonee.commands.calibrate import calibrate_and_show
    from persephonee.commands.models.exits_table import exits_table
    from persephonee.data_partitions.opening import open_partitions
    from persephonee.fl_app.server_side.held_out_pools import check_held_out_users
    from persephonee.server.training.global_model import check_folder, make_global_model
    from persephonee.server.training.pretraining_progress import shown_progress
    from persephonee.server.training.remaining_time import shown_work

    device = compute.torch_device()
    check_folder(out, resume, overwrite)
    partitions = open_partitions(data, for_pretraining=True, allowed=settings.sources)
    limit, num_users = settings.users.max_users, len(partitions.client_ids)
    if limit is not None and limit < num_users:
        log.info("Training on %d of %d users at most; --max-users 0 takes all.", limit, num_users)
    described = {
        **{"backbone": settings.backbone, "num_exits": settings.num_exits, "dataset": data.dataset},
        **asdict(settings.training),
    }
    with shown_work(log, "reading held-out users") as told:
        check_held_out_users(settings, partitions, told)
    with shown_progress() as shown, tracked_progress(track, out, shown, described) as progress:
        network, result = make_global_model(
            settings, partitions, out, resume=resume, overwrite=overwrite, progress=progress, device=device
        )
    # graphs last: saving a model removes those that it had
    if settings.users.calibration_users:
        count, seed = settings.users.calibration_users, settings.training.seed
        calibrate_and_show(out, partitions, settings.sources, count, seed, device)
    write_graphs_if_possible(network, out)
    write_card_if_possible(network, out)
    console = Console()
    console.print(exits_table(network, result.accuracies))
    console.print(_summary(network, result, out), highlight=False, markup=False, soft_wrap=True)
    return partitions


def _summary(network: "MultiExitNetwork", result: "PretrainResult", out: Path) -> str:
    return (
        f"{out}: {network.spec.backbone}, {network.num_exits} exits, trained on {result.num_train} samples; the last "
        f"exit has {result.accuracies[-1]:.2%} on {result.num_validation} samples of held-out users "
        f"(epoch {result.best_epoch} of {len(result.history)})."
    )
