"""`persephonee calibrate`: what a model has to carry so that a device's policy keeps its promise."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import DEFAULT_SOURCES, Seed, Sources, compute_settings, data_settings, source_names

if TYPE_CHECKING:
    import torch

    from persephonee.data_partitions.samples import Partitions
    from persephonee.data_partitions.settings import DataSettings
    from persephonee.multi_exit.network import MultiExitNetwork
    from persephonee.multi_exit.settings import ComputeSettings

log = logging.getLogger("persephonee.calibrate")


@with_groups(data=data_settings, compute=compute_settings)
def calibrate(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model, which receives the calibration.")],
    data: "DataSettings",
    users: Annotated[int, typer.Option(help="At most so many users who trained nothing.", min=2)] = 100,
    compute: "ComputeSettings",
    sources: Sources = DEFAULT_SOURCES,
    seed: Seed = 0,
) -> None:
    """Measure on users who trained nothing what each policy loses, and store that with the model.

    `pretrain` ends with it; a model of an earlier version needs it once. A model whose exits nobody has calibrated
    gets their temperatures and class frequencies as well. The weights and the fingerprint stay as they are.
    """
    from persephonee.commands.model_graphs import write_graphs_if_possible
    from persephonee.commands.models.card import write_card_if_possible
    from persephonee.fl_app.wire.model_fit import open_fitting
    from persephonee.multi_exit.atomic_files import check_writable
    from persephonee.multi_exit.storage import SavedModel

    device = compute.torch_device()
    saved = SavedModel.read(model, source_names(sources))
    check_writable(model)
    partitions = open_fitting(data, saved, saved.metadata, source_names(sources), for_pretraining=True)
    network = calibrate_and_show(model, partitions, source_names(sources), users, seed, device)
    # saving a model removes the graphs that it had
    write_graphs_if_possible(network, model)
    write_card_if_possible(network, model)


def calibrate_and_show(
    model: Path,
    partitions: "Partitions",
    sources: tuple[str, ...],
    users: int,
    seed: int,
    device: "torch.device | None" = None,
) -> "MultiExitNetwork":
    """Calibrate, print what the model can promise a device, and return its network."""
    from rich.console import Console

    from persephonee.clients.personalisation.risk.risk_pools import RiskPool
    from persephonee.clients.personalisation.settings import PersonalisationSettings
    from persephonee.fl_app.server_side.held_out_pools import calibrate_model
    from persephonee.server.training.remaining_time import shown_work

    console, settings = Console(), PersonalisationSettings()
    with shown_work(log, "measuring what policies lose") as tell:
        network, _, count = calibrate_model(
            model,
            partitions,
            sources=sources,
            users=users,
            seed=seed,
            told=tell,
            device=device,
        )
    found = {name: RiskPool.from_json(pool, network.num_exits) for name, pool in network.risk_pools.items()}
    certified = [n for n, p in found.items() if p.certificate(settings.drop_tolerance, settings.delta) is not None]
    promise = f"a drop of at most {settings.drop_tolerance:.1%} is promised, with delta {settings.delta:g}, after"
    lacking = "none: there a device keeps the original network, or takes a larger --drop-tolerance"
    console.print(
        f"{model}: what policies lose was measured on {count} users who trained nothing; {promise}: "
        f"{', '.join(sorted(certified)) or lacking}.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return network
