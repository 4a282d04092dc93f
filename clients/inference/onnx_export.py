"""Export of a personal network to ONNX, stage by stage: pruned exits are left out (Sec. 3.2).

`clients/inference/onnx_engine.py` runs the graphs. They come from PyTorch (`torch_export.py`), or from the graphs that
the model carries (`graph_export.py`).
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from persephonee.clients.errors import ExportError
from persephonee.clients.inference.engine import check_fits
from persephonee.clients.inference.exported_network import (
    POLICY_FILE,
    ExportedNetwork,
    ExportedStep,
    StepGraphs,
    graph_name,
    own_graphs,
)
from persephonee.clients.personalisation.exit_store import StoredExits
from persephonee.clients.personalisation.features import runs_on_graphs
from persephonee.multi_exit.atomic_files import (
    check_writable,
    names_in,
    remove_leftovers,
    write_bytes_atomically,
    write_json_atomically,
)

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network

logger = logging.getLogger(__name__)


def export_onnx(
    network: "Network",
    stored: StoredExits,
    folder: Path,
    *,
    class_names: tuple[str, ...] = (),
    overwrite: bool = False,
) -> ExportedNetwork:
    """Write the graphs of the merged stages and heads in use, with a dynamic batch, and then the policy.

    Args:
        network: the global model; left as it is.
        stored: the personal exits and the policy in force.
        folder: made where it is missing.
        class_names: K names, or empty.
        overwrite: replace an exported network in `folder`; files that it does not name are left alone.

    Raises:
        ExportError: the folder is not empty, or an operator has no ONNX counterpart.
        ModelFileError: the exits do not fit the network.
        OSError: the folder cannot be written; a network that it held before stays in force.
    """
    check_fits(stored.policy, network.num_exits)
    # graphs without a policy are what a kill left of an export
    if not overwrite and set(names_in(folder)) - own_graphs(folder):
        raise ExportError(f"{folder} is not empty: give another folder, or --overwrite.")
    check_writable(folder)
    remove_leftovers(folder)
    exported = ExportedNetwork(
        policy=stored.policy,
        input_shape=network.input_shape,
        num_classes=network.num_classes,
        class_names=class_names,
        client_id=stored.client_id,
        round=stored.round,
        backbone_fingerprint=stored.backbone_fingerprint,
        steps=tuple(_written(graphs, folder) for graphs in _step_graphs(network, stored)),
    )
    stale = own_graphs(folder)
    write_json_atomically(folder / POLICY_FILE, exported.to_dict())
    for name in stale - set(exported.files):
        (folder / name).unlink(missing_ok=True)
    return exported


def _step_graphs(network: "Network", stored: StoredExits) -> Iterator[StepGraphs]:
    if runs_on_graphs(network):
        from persephonee.clients.inference import graph_export

        return graph_export.step_graphs(network, stored)
    from persephonee.clients.inference import torch_export

    return torch_export.step_graphs(network, stored)


def _written(graphs: StepGraphs, folder: Path) -> ExportedStep:
    stage = _write_graph(graphs.stage, "stage", graphs.exit, folder)
    head = None if graphs.head is None else _write_graph(graphs.head, "head", graphs.exit, folder)
    return ExportedStep(exit=graphs.exit, stage=stage, head=head)


def _write_graph(graph: bytes, part: str, exit: int, folder: Path) -> str:
    name = graph_name(part, exit, graph)
    write_bytes_atomically(folder / name, graph)
    logger.info("exported %s, %.2f MB", name, len(graph) / 1e6)
    return name
