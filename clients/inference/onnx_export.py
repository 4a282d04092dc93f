"""Export of a personal network to ONNX, stage by stage: pruned exits are left out (Sec. 3.2).

Tracing happens here, once; `clients/inference/onnx_engine.py` runs the graphs without PyTorch.
"""

import copy
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from persephonee.clients.errors import ExportError
from persephonee.clients.inference.engine import check_fits, merged_stages
from persephonee.clients.inference.exported_network import (
    POLICY_FILE,
    ExportedNetwork,
    ExportedStep,
    graph_name,
    own_graphs,
)
from persephonee.clients.inference.inference_engine import merge
from persephonee.clients.personalisation.exit_store import StoredExits
from persephonee.multi_exit.atomic_files import (
    names_in,
    remove_leftovers,
    write_bytes_atomically,
    write_json_atomically,
)
from persephonee.multi_exit.graphs.writing import GraphError, to_onnx
from persephonee.multi_exit.network import MultiExitNetwork

logger = logging.getLogger(__name__)


def export_onnx(
    network: MultiExitNetwork,
    stored: StoredExits,
    folder: Path,
    *,
    class_names: tuple[str, ...] = (),
    overwrite: bool = False,
) -> ExportedNetwork:
    """Write one graph per merged stage and head in use, with a dynamic batch, and then the policy.

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
    remove_leftovers(folder)
    network = copy.deepcopy(network).eval().requires_grad_(False)
    network.load_exit_state(stored.exit_weights)
    exported = ExportedNetwork(
        policy=stored.policy,
        input_shape=network.input_shape,
        num_classes=network.num_classes,
        class_names=class_names,
        client_id=stored.client_id,
        round=stored.round,
        backbone_fingerprint=stored.backbone_fingerprint,
        steps=_write_graphs(network, merged_stages(stored.policy), stored.last_shift, folder),
    )
    stale = own_graphs(folder)
    write_json_atomically(folder / POLICY_FILE, exported.to_dict())
    for name in stale - set(exported.files):
        (folder / name).unlink(missing_ok=True)
    return exported


def _write_graphs(
    network: MultiExitNetwork, spans: tuple[range, ...], last_shift: NDArray[np.float32] | None, folder: Path
) -> tuple[ExportedStep, ...]:
    # two images: a batch of one would be taken for a constant
    features = torch.zeros(2, *network.input_shape)
    steps = []
    for span in spans:
        exit = span[-1]
        stage = merge(network, span, last_shift)
        stage_file = _write_graph(stage, features, "stage", exit, folder)
        features = stage(features)
        is_last = exit == network.num_exits
        head_file = None if is_last else _write_graph(network.heads[exit], features, "head", exit, folder)
        steps.append(ExportedStep(exit=exit, stage=stage_file, head=head_file))
    return tuple(steps)


def _write_graph(module: nn.Module, example: Tensor, part: str, exit: int, folder: Path) -> str:
    try:
        graph = to_onnx(module, example, ("output",))
    except GraphError as error:
        raise ExportError(f"the {part} of exit {exit}: {error}: use the PyTorch engine for this network.") from None
    name = graph_name(part, exit, graph)
    write_bytes_atomically(folder / name, graph)
    logger.info("exported %s, %.2f MB", name, len(graph) / 1e6)
    return name
