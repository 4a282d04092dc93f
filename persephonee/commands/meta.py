"""`persephonee pretrain --from MODEL --meta METHOD`: meta-learn the exits of a model that has been trained."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.model_graphs import write_graphs_if_possible
from persephonee.commands.models.card import write_card_if_possible
from persephonee.commands.option_groups import OptionGroup
from persephonee.commands.options import source_names
from persephonee.commands.run_settings import given_options

if TYPE_CHECKING:
    from persephonee.data_partitions.settings import DataSettings
    from persephonee.server.training.meta_settings import MetaSettings

META = "Meta-learning, with --from"

Start = Annotated[
    Path | None,
    typer.Option(
        "--from", help="A trained model: its backbone stays, its exits learn on the same users.", rich_help_panel=META
    ),
]


meta_settings = OptionGroup(
    "persephonee.server.training.meta_settings:MetaSettings",
    META,
    only=("method", "epochs", "rate", "inner_steps", "inner_rate", "seed"),
    renamed={"method": "meta", "epochs": "meta_epochs", "rate": "meta_rate"},
    no_default=("method",),
)


def refuse_given(context: typer.Context, names: Iterable[str], because: str) -> None:
    """Refuse options that were given and would do nothing."""
    given = given_options(context)
    for name in names:
        if name.replace("_", "-") in given:
            raise typer.BadParameter(f"--{name.replace('_', '-')} does nothing {because}; leave it out.")


def meta_learn_and_show(
    context: typer.Context,
    start: Path,
    settings: "MetaSettings",
    data: "DataSettings",
    out: Path,
    *,
    max_users: int | None,
    sources: str,
    overwrite: bool,
) -> None:
    """Meta-learn, and print each exit's accuracy after a few steps on a new user's samples, before and now."""
    from rich.console import Console

    from persephonee.commands.calibrate import calibrate_and_show
    from persephonee.commands.models.exits_table import exits_table
    from persephonee.fl_app.wire.model_fit import open_fitting
    from persephonee.multi_exit.storage import SavedModel
    from persephonee.server.training.global_model import check_folder
    from persephonee.server.training.global_model_settings import UserFractions
    from persephonee.server.training.meta_model import make_meta_learned_model
    from persephonee.server.training.pretraining_progress import shown_progress

    if "meta" not in given_options(context):
        raise typer.BadParameter("--from takes a model whose exits are to be meta-learned; add --meta reptile.")
    if out.resolve() != start.resolve():
        check_folder(out, overwrite=overwrite)
    saved = SavedModel.read(start, source_names(sources))
    partitions = open_fitting(data, saved, saved.metadata, source_names(sources), for_pretraining=True)
    with shown_progress() as progress:
        network, result = make_meta_learned_model(
            start,
            settings,
            partitions,
            out,
            max_users=max_users,
            sources=source_names(sources),
            overwrite=overwrite,
            progress=progress,
        )
    # graphs last: saving a model removes those that it had
    calibrate_and_show(out, partitions, source_names(sources), UserFractions().calibration_users, settings.seed)
    write_graphs_if_possible(network, out)
    write_card_if_possible(network, out)
    console = Console()
    console.print(exits_table(network, result.history[result.best_epoch].validation_accuracy))
    before, after = (
        sum(record.validation_accuracy[:-1]) / network.num_exits
        for record in (result.history[0], result.history[result.best_epoch])
    )
    summary = (
        f"{out}: exits meta-learned on {result.num_train} users; after {settings.inner_steps} steps on a new user's "
        f"samples the early exits have {after:.2%} on average, {before:.2%} before (epoch {result.best_epoch} of "
        f"{settings.epochs}, {result.num_validation} validating users)."
    )
    console.print(summary, highlight=False, markup=False, soft_wrap=True)
