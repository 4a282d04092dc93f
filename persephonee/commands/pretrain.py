"""`persephonee pretrain`: derive the multi-exit network of a CNN and train the global model."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.meta import OF_META, Start, meta_learn_and_show, meta_settings, refuse_given
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import DEFAULT_SOURCES, NETWORK, TRAINING, Seed, Sources, data_settings, source_names
from persephonee.server.training.meta_settings import MetaSettings
from persephonee.server.training.pretraining_settings import PretrainSettings

if TYPE_CHECKING:
    from persephonee.data_partitions.samples import Partitions
    from persephonee.data_partitions.settings import DataSettings
    from persephonee.multi_exit.network import MultiExitNetwork
    from persephonee.server.training.global_model_settings import GlobalModelSettings
    from persephonee.server.training.pretraining import PretrainResult

log = logging.getLogger("persephonee.pretrain")

FEW_USERS = 60
"""Of the built-in writers about 12,000 samples an epoch: minutes on a laptop, where all of them take hours."""

Backbone = Annotated[
    str,
    typer.Option(help="A torchvision CNN, timm/NAME, or package.module:function.", rich_help_panel=NETWORK),
]
OwnBackbone = Annotated[
    str | None,
    typer.Option(
        help="A torchvision CNN, timm/NAME, or package.module:function; needed but with --from.",
        rich_help_panel=NETWORK,
    ),
]
NumExits = Annotated[int, typer.Option(help="Early exits besides the original classifier.", rich_help_panel=NETWORK)]
OwnNumExits = Annotated[
    int | None,
    typer.Option(help="Early exits besides the original classifier; needed but with --from.", rich_help_panel=NETWORK),
]
Head = Annotated[str, typer.Option(help="msdnet, or the much cheaper pooled.", rich_help_panel=NETWORK)]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Trained weights of the backbone (.safetensors or .pth): only the exits learn.", rich_help_panel=NETWORK
    ),
]


def training_settings(
    *,
    weights: Weights = None,
    epochs: Annotated[int, typer.Option(help="At most this many.", rich_help_panel=TRAINING)] = PretrainSettings.epochs,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a better last exit.", rich_help_panel=TRAINING)
    ] = PretrainSettings.patience,
    batch_size: Annotated[
        int, typer.Option(help="Images a step.", rich_help_panel=TRAINING)
    ] = PretrainSettings.batch_size,
    learning_rate: Annotated[
        float, typer.Option(help="The schedule's largest.", rich_help_panel=TRAINING)
    ] = PretrainSettings.learning_rate,
    weight_decay: Annotated[
        float, typer.Option(help="Of SGD.", rich_help_panel=TRAINING)
    ] = PretrainSettings.weight_decay,
    augmentation: Annotated[
        str, typer.Option(help="none, shift or affine: how images are moved.", rich_help_panel=TRAINING)
    ] = PretrainSettings.augmentation,
    max_samples: Annotated[
        int | None, typer.Option(help="Train on a random choice of so many samples.", rich_help_panel=TRAINING)
    ] = None,
    seed: Seed = 0,
) -> PretrainSettings:
    """Make the settings of the training."""
    return PretrainSettings(
        mode="joint" if weights is None else "exits",
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        augmentation=augmentation,  # type: ignore[arg-type]
        max_samples=max_samples,
        seed=seed,
    )


@with_groups(training=training_settings, meta=meta_settings, data=data_settings)
def pretrain(
    *,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    training: PretrainSettings,
    meta: MetaSettings | None,
    data: "DataSettings",
    backbone: OwnBackbone = None,
    num_exits: OwnNumExits = None,
    head: Head = "msdnet",
    weights: Weights = None,
    mean: Annotated[
        str | None, typer.Option(help="Subtracted from images, per channel, with commas.", rich_help_panel=NETWORK)
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Divides the difference, per channel, with commas.", rich_help_panel=NETWORK)
    ] = None,
    personal_users: Annotated[
        float | None,
        typer.Option(
            help="Users kept back to personalise: a number or a fraction below 1. By default the paper's 250 of 3,500, "
            "but 100 where a third of the users is as many; none of imagefolder, whose users are apart anyway.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Fraction of the other users who only validate.", rich_help_panel=TRAINING)
    ] = 0.1,
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
) -> None:
    """Derive the multi-exit network of a CNN and train the global model on many users' data.

    With --from MODEL --meta METHOD: meta-learn the exits of a trained model instead.
    """
    from persephonee.multi_exit.backbones import source_of
    from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions

    if start is not None:
        meta_learn_and_show(
            context, start, meta, data, out, max_users=max_users or None, sources=sources, overwrite=overwrite
        )
        return
    refuse_given(context, OF_META, "without --from MODEL")
    if backbone is None or num_exits is None:
        option = "--num-exits" if backbone is not None else "--backbone"
        raise typer.BadParameter(f"{option} is missing; name it, or a trained model with --from.")
    settings = GlobalModelSettings(
        backbone=backbone,
        num_exits=num_exits,
        head=head,
        weights=weights,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        users=UserFractions(
            personal_users=personal_users,
            validation_fraction=validation_fraction,
            max_users=FEW_USERS if max_users is None else max_users or None,
        ),
        training=training,
        # whoever names a network of their own on this command line trusts it
        sources=source_names(sources, source_of(backbone)),
    )
    make_and_show(settings, data, out, resume=resume, overwrite=overwrite)


def make_and_show(
    settings: "GlobalModelSettings", data: "DataSettings", out: Path, *, resume: bool, overwrite: bool
) -> "Partitions":
    """Pretrain, print the accuracy of each exit, and return the data that was opened."""
    from rich.console import Console

    from persephonee.commands.exits_table import exits_table
    from persephonee.data_partitions.opening import open_partitions
    from persephonee.server.training.global_model import make_global_model
    from persephonee.server.training.pretraining_progress import shown_progress

    partitions = open_partitions(data, for_pretraining=True)
    limit, num_users = settings.users.max_users, len(partitions.client_ids)
    if limit is not None and limit < num_users:
        log.info("Training on %d of %d users at most; --max-users 0 takes all.", limit, num_users)
    with shown_progress() as progress:
        network, result = make_global_model(
            settings, partitions, out, resume=resume, overwrite=overwrite, progress=progress
        )
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


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(",")) if text else ()
    except ValueError:
        raise typer.BadParameter(f"{option} {text} is no list of numbers such as 0.485,0.456,0.406.") from None
