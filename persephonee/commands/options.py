"""The options that several verbs share, and the settings that they make.

Nothing heavy is imported here: --help must answer at once, and a device has neither Flower nor Ray.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.option_groups import OptionGroup

if TYPE_CHECKING:
    from persephonee.fl_app.settings.app_settings import LossSettings

DATA = "Data"
NETWORK = "Network"
TRAINING = "Pretraining"
PERSONALISATION = "Personalisation"
RUNTIME = "Runtime"

LARGEST_SEED = 2**63 - 1
"""What torch and a run configuration take."""

GLOBAL_MODEL = "persephonee.server.training.global_model_settings"
DATA_CLASS = "persephonee.data_partitions.settings:DataSettings"
SPLIT_CLASS = "persephonee.data_partitions.settings:SplitSettings"
SCHEDULE_CLASS = "persephonee.clients.personalisation.settings:PersonalisationSettings"

COMPUTE_CLASS = "persephonee.multi_exit.settings:ComputeSettings"

runtime_settings = OptionGroup("persephonee.multi_exit.settings:RuntimeSettings", RUNTIME)
compute_settings = OptionGroup(COMPUTE_CLASS, only=("device",))
data_settings = OptionGroup(DATA_CLASS, DATA, renamed={"seed": "data_seed"})
split_settings = OptionGroup(SPLIT_CLASS, DATA)
loss_settings = OptionGroup("persephonee.fl_app.settings.app_settings:LossSettings", PERSONALISATION)
# the weights follow from the loss
schedule_settings = OptionGroup(SCHEDULE_CLASS, PERSONALISATION, leave_out=("weights",))


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
        help="Where backbones, heads and data may come from, with commas: torchvision, timm, or modules of one's own.",
        rich_help_panel=NETWORK,
    ),
]
DEFAULT_SOURCES = "torchvision,timm"


def source_names(sources: str, *trusted: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list, and those that are trusted anyway, each once."""
    named = (name.strip() for name in sources.split(",") if name.strip())
    return tuple(dict.fromkeys((*named, *trusted)))


def own_modules(*names: str) -> tuple[str, ...]:
    """Return the modules of those names that are `package.module:function`: whoever types them trusts them."""
    return tuple(name.split(":")[0] for name in names if ":" in name)


def numbers_of(option: str, text: str, least: float = 0) -> list[float]:
    """Return the numbers in a comma-separated list that an option takes."""
    try:
        numbers = [float(one) for one in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(least <= number < float("inf") for number in numbers):
        raise typer.BadParameter(f"--{option} {text} is not known; give numbers from {least:g} on, with commas.")
    return numbers


def counts_of(option: str, text: str) -> list[int]:
    """Return the whole numbers in a comma-separated list that an option takes, each 1 or more."""
    numbers = numbers_of(option, text, least=1)
    if not all(number.is_integer() for number in numbers):
        raise typer.BadParameter(f"--{option} {text} is not known; give whole numbers with commas.")
    return [int(number) for number in numbers]


def refuse_missing_labels(loss: "LossSettings", labelled: float) -> None:
    """Refuse weights that learn from labels where there are none."""
    from persephonee.clients.errors import LabelsRequiredError

    if labelled == 0 and loss.weights(labelled).alpha > 0:
        raise LabelsRequiredError(
            "--labels none leaves no label to learn from, and alpha > 0 learns from labels: "
            "take the scheme self-distillation or self-supervision."
        )
