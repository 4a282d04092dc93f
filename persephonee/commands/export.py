"""`persephonee export`: the personal network as ONNX, stage by stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.errors import printable
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import DEFAULT_SOURCES, Seed, Sources, data_settings, source_names

if TYPE_CHECKING:
    from persephonee.clients.inference.exported_network import ExportedNetwork
    from persephonee.data_partitions.settings import DataSettings


@with_groups(data=data_settings)
def export(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    store: Annotated[Path | None, typer.Option(help="Folder of the device: personal exits and policy.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the graphs and policy.json.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the network in the folder.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the model's graphs on users who are no devices.")] = (
        False
    ),
    users: Annotated[int, typer.Option(help="With --int8: at most so many users, half to calibrate.", min=2)] = 20,
    data: "DataSettings",
    sources: Sources = DEFAULT_SOURCES,
    seed: Seed = 0,
) -> None:
    """Write the personal network for ONNX Runtime: a graph for each stage and head in use, and the policy.

    Where PyTorch is not installed, they are made of the model's own graphs, with the extra `export`.

    With --model alone: write beside the weights the graphs that devices without PyTorch need where they are missing.
    With --int8 too: write int8 graphs beside those, calibrated on users of the data on whom the model was not trained,
    and print what they cost and gain on others of them.
    """
    if int8 and (store or out):
        raise typer.BadParameter("--int8 is of the model's graphs: leave --store and --out out.")
    if (store is None) != (out is None):
        raise typer.BadParameter("--store and --out go together; --model alone writes the model's own graphs.")
    from persephonee.multi_exit.atomic_files import check_writable

    if store is None or out is None:
        check_writable(model)
        if int8:
            from persephonee.commands.models.int8 import quantise_and_show
            from persephonee.data_partitions.opening import open_partitions

            partitions = open_partitions(data, for_pretraining=True, allowed=source_names(sources))
            quantise_and_show(model, partitions, users, seed)
            return
        typer.echo(_write_graphs(model, source_names(sources)))
        return
    from persephonee.clients.inference.onnx_export import export_onnx
    from persephonee.clients.personalisation.exit_store import ExitStore
    from persephonee.commands.model_graphs import load_with_torch_or_graphs
    from persephonee.fl_app.errors import AppError

    network, metadata = load_with_torch_or_graphs(model, source_names(sources))
    check_writable(out)
    own = network.exit_state()
    stored = ExitStore(store).load(network.backbone_fingerprint, own, None, graphs=network.graphs_fingerprint)
    if stored is None:
        raise AppError(f"{store} holds no personal exits: run persephonee personalise --store {store} first.")
    exported = export_onnx(network, stored, out, class_names=metadata.class_names, overwrite=overwrite)
    typer.echo(printable(_summary(exported, out)))


def _write_graphs(model: Path, sources: tuple[str, ...]) -> str:
    from persephonee.multi_exit.graphs.writing import write_graphs
    from persephonee.multi_exit.storage import load_network

    graphs = write_graphs(load_network(model, sources)[0], model)
    size = sum((model / stage.file).stat().st_size for stage in graphs.stages)
    return f"{model}: {len(graphs.stages)} graphs, {size / 1e6:.2f} MB; devices need no PyTorch for this model."


def _summary(exported: "ExportedNetwork", out: Path) -> str:
    size = sum((out / name).stat().st_size for name in exported.files)
    names = [str(exit) for exit in exported.policy.exits_in_use]
    exits = f"exits {', '.join(names)} and the last one" if names else "the last exit only"
    return (
        f"{out}: {len(exported.files)} graphs, {size / 1e6:.2f} MB, of user {exported.client_id}, round "
        f"{exported.round}; {exits}, threshold {exported.policy.threshold:g}."
    )
