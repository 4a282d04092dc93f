"""The options that several verbs share, and the settings that they make.

Nothing heavy is imported here: --help must answer at once, and a device has neither Flower nor Ray.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from persephonee.clients.personalisation.settings import PersonalisationSettings
    from persephonee.data_partitions.settings import DataSettings, SplitSettings
    from persephonee.fl_app.settings.app_settings import LossSettings

DATA = "Data"
NETWORK = "Network"
TRAINING = "Pretraining"
PERSONALISATION = "Personalisation"

LARGEST_SEED = 2**63 - 1
"""What torch and a run configuration take."""


def checked_seed(seed: int) -> int:
    """Refuse a seed that some generator would not take."""
    if not 0 <= seed <= LARGEST_SEED:
        raise typer.BadParameter(f"seed={seed} is out of range; give a whole number in [0, 2**63).")
    return seed


Seed = Annotated[int, typer.Option(help="All randomness follows from it; 0 or more.", callback=checked_seed)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Sources = Annotated[
    str,
    typer.Option(
        help="Where backbones may come from, with commas: torchvision, timm, or the module of a network of one's own.",
        rich_help_panel=NETWORK,
    ),
]
DEFAULT_SOURCES = "torchvision,timm"
Dataset = Literal["synthetic-writers", "femnist", "parquet", "leaf", "imagefolder"]
Labels = Annotated[
    str,
    typer.Option(
        help="How much of a user's data is labelled: all, none, or a fraction such as 0.25.",
        rich_help_panel=PERSONALISATION,
    ),
]


def source_names(sources: str, *trusted: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list, and those that are trusted anyway, each once."""
    named = (name.strip() for name in sources.split(",") if name.strip())
    return tuple(dict.fromkeys((*named, *trusted)))


def data_settings(
    *,
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
    image_column: Annotated[
        str, typer.Option(help="parquet, imagefolder: the column of the images.", rich_help_panel=DATA)
    ] = "image",
    num_classes: Annotated[
        int | None,
        typer.Option(
            help="parquet, leaf: how many classes; by default the model's, or else found in the data.",
            rich_help_panel=DATA,
        ),
    ] = None,
    num_writers: Annotated[
        int, typer.Option(help="synthetic-writers: how many there are, 1 to 3550.", rich_help_panel=DATA)
    ] = 3550,
    hub_name: Annotated[
        str, typer.Option(help="imagefolder: a data set of the hub in place of a path.", rich_help_panel=DATA)
    ] = "",
    num_users: Annotated[int, typer.Option(help="imagefolder: how many users are drawn.", rich_help_panel=DATA)] = 250,
    samples_per_user: Annotated[
        int, typer.Option(help="imagefolder: images of each user.", rich_help_panel=DATA)
    ] = 600,
    label_skew_width: Annotated[
        float,
        typer.Option(help="imagefolder: standard deviation of a user's taste, in classes.", rich_help_panel=DATA),
    ] = 10.0,
    image_size: Annotated[
        int | None, typer.Option(help="imagefolder: scale and crop images to this side, in px.", rich_help_panel=DATA)
    ] = None,
    data_seed: Annotated[
        int,
        typer.Option(
            help="synthetic-writers: another seed gives other users; imagefolder too, and another pool for the model, "
            "which has to be pretrained with the same.",
            callback=checked_seed,
            rich_help_panel=DATA,
        ),
    ] = 0,
) -> "DataSettings":
    """Make the DATA settings."""
    from persephonee.data_partitions.settings import DataSettings

    return DataSettings(
        dataset=dataset,
        data_path=data_path,
        user_column=user_column,
        label_column=label_column,
        image_column=image_column,
        num_classes=num_classes,
        num_writers=num_writers,
        hub_name=hub_name,
        num_users=num_users,
        samples_per_user=samples_per_user,
        label_skew_width=label_skew_width,
        image_size=image_size,
        seed=data_seed,
    )


def split_settings(
    *,
    labels: Labels = "all",
    test_samples: Annotated[
        int, typer.Option(help="Samples of a user held out for testing, of larger users.", rich_help_panel=DATA)
    ] = 100,
    test_fraction: Annotated[
        float, typer.Option(help="Share held out of smaller users, in [0, 1].", rich_help_panel=DATA)
    ] = 0.3,
    min_samples: Annotated[
        int, typer.Option(help="Users with fewer samples take no part, and are named.", rich_help_panel=DATA)
    ] = 20,
) -> "SplitSettings":
    """Make the settings of a user's train, calibration and test parts."""
    from persephonee.data_partitions.settings import SplitSettings
    from persephonee.fl_app.settings.run_config import parse_labels

    share = parse_labels(labels)
    settings = SplitSettings(test_fraction=test_fraction, min_samples=min_samples, labels=share)
    smallest = max(settings.test_samples_from, test_samples + 1)
    return replace(settings, test_samples=test_samples, test_samples_from=smallest)


def loss_settings(
    *,
    labels: Labels = "all",
    scheme: Annotated[
        Literal["auto", "supervised", "self-distillation", "self-supervision"],
        typer.Option(
            help="What the exits learn from; auto follows the labels.",
            rich_help_panel=PERSONALISATION,
        ),
    ] = "auto",
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the labels in Eq. (1).", rich_help_panel=PERSONALISATION)
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="Weight of the last exit's soft answers in Eq. (1).", rich_help_panel=PERSONALISATION),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(
            help="Weight of the last exit's hard answers in Eq. (1); excludes alpha.", rich_help_panel=PERSONALISATION
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="T of the soft answers, above 0.", rich_help_panel=PERSONALISATION)
    ] = 1.0,
) -> "LossSettings":
    """Make the settings of Eq. (1), and refuse labels that are wanted and not there."""
    from persephonee.fl_app.settings.app_settings import LossSettings
    from persephonee.fl_app.settings.run_config import parse_labels

    settings = LossSettings(scheme=scheme, alpha=alpha, beta=beta, gamma=gamma, temperature=temperature)
    refuse_missing_labels(settings, parse_labels(labels))
    return settings


def refuse_missing_labels(loss: "LossSettings", labelled: float) -> None:
    """Refuse weights that learn from labels where there are none."""
    from persephonee.clients.errors import LabelsRequiredError

    if labelled == 0 and loss.weights(labelled).alpha > 0:
        raise LabelsRequiredError(
            "--labels none leaves no label to learn from, and alpha > 0 learns from labels: "
            "take the scheme self-distillation or self-supervision."
        )


def schedule_settings(
    *,
    schedule: Annotated[
        Literal["paper", "fast"],
        typer.Option(
            help="paper (SGD, as the options here say) or fast (classifiers only, in a few steps).",
            rich_help_panel=PERSONALISATION,
        ),
    ] = "paper",
    epochs: Annotated[
        int, typer.Option(help="Passes over a user's training data.", rich_help_panel=PERSONALISATION)
    ] = 10,
    learning_rate: Annotated[
        float, typer.Option(help="Of the exits' SGD, above 0.", rich_help_panel=PERSONALISATION)
    ] = 0.01,
    batch_size: Annotated[int, typer.Option(help="Samples a step.", rich_help_panel=PERSONALISATION)] = 32,
    drop_tolerance: Annotated[
        float,
        typer.Option(
            help="Accuracy that may be lost against the last exit, in [0, 1].", rich_help_panel=PERSONALISATION
        ),
    ] = 0.01,
    cost: Annotated[
        Literal["macs", "latency"],
        typer.Option(
            help="What the threshold saves: macs, or latency, measured on this device.", rich_help_panel=PERSONALISATION
        ),
    ] = "macs",
    memory_budget: Annotated[
        str,
        typer.Option(
            help="What a round may take beside the network, such as 1GB; no limit by default.",
            rich_help_panel=PERSONALISATION,
        ),
    ] = "",
    proximal_mu: Annotated[
        float,
        typer.Option(
            help="FedProx: mu of the pull towards the global exits, 0 or more.", rich_help_panel=PERSONALISATION
        ),
    ] = 0.0,
) -> "PersonalisationSettings":
    """Make the settings of a personalisation round; its weights follow from the loss."""
    from persephonee.clients.personalisation.settings import PersonalisationSettings

    return PersonalisationSettings(
        schedule=schedule,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        drop_tolerance=drop_tolerance,
        cost=cost,
        memory_budget=memory_budget,
        proximal_mu=proximal_mu,
    )
