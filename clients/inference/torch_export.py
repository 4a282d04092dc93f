"""The graphs of a personal network, traced by PyTorch: one for each merged stage and head in use (Sec. 3.2)."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from persephonee.clients.errors import ExportError
from persephonee.clients.inference.engine import merged_stages
from persephonee.clients.inference.exported_network import StepGraphs
from persephonee.clients.inference.inference_engine import merge
from persephonee.clients.personalisation.exit_store import StoredExits
from persephonee.multi_exit.graphs.writing import GraphError, to_onnx
from persephonee.multi_exit.network import MultiExitNetwork


def step_graphs(network: MultiExitNetwork, stored: StoredExits) -> Iterator[StepGraphs]:
    """Yield the graphs of each step, with a free batch size.

    Args:
        network: the global model; left as it is.
        stored: the personal exits and the policy in force.

    Raises:
        ExportError: an operator has no ONNX counterpart.
        ModelFileError: the exits do not fit the network.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    network.load_exit_state(stored.exit_weights)
    # two images: a batch of one would be taken for a constant
    features = torch.zeros(2, *network.input_shape)
    for span in merged_stages(stored.policy):
        exit = span[-1]
        stage = merge(network, span, stored.last_shift)
        graph = _graph_of(stage, features, f"the stage of exit {exit}")
        features = stage(features)
        is_last = exit == network.num_exits
        head = None if is_last else _graph_of(network.heads[exit], features, f"the head of exit {exit}")
        yield StepGraphs(exit=exit, stage=graph, head=head)


def _graph_of(module: nn.Module, example: Tensor, what: str) -> bytes:
    try:
        return to_onnx(module, example, ("output",))
    except GraphError as error:
        raise ExportError(f"{what}: {error}: use the PyTorch engine for this network.") from None
