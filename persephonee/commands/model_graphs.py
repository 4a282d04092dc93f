"""Models as the verbs write and load them: with graphs, on which a device runs where that is enough, or on PyTorch."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network
    from persephonee.multi_exit.network import MultiExitNetwork
    from persephonee.multi_exit.settings import ComputeSettings, RuntimeSettings
    from persephonee.multi_exit.storage import ModelMetadata

log = logging.getLogger("persephonee.graphs")


def write_graphs_if_possible(network: "MultiExitNetwork", out: Path) -> None:
    """Write the graphs beside a model's weights; a model without them still serves whoever has PyTorch."""
    from persephonee.multi_exit.graphs.writing import GraphError, write_graphs

    try:
        write_graphs(network, out)
    except GraphError as error:
        log.warning("The model carries no graphs, so devices need PyTorch for it: %s", error)


def load_for_device(
    folder: Path,
    sources: tuple[str, ...],
    runtime: "RuntimeSettings",
    compute: "ComputeSettings",
    *,
    trains_heads: bool,
) -> "tuple[Network, ModelMetadata]":
    """Return the network, on whatever the settings and this machine allow, and what is known of it.

    Args:
        folder: of the model.
        sources: from which this machine builds backbones.
        runtime: ONNX Runtime or PyTorch.
        compute: where PyTorch computes.
        trains_heads: whether rounds train the exits' convolutions, as the paper's schedule does.

    Raises:
        ClientSettingsError: the schedule needs PyTorch, which is not installed.
        SettingsError: an execution provider is missing.
        MultiExitError: the model cannot be loaded.
    """
    from persephonee.clients.errors import ClientSettingsError
    from persephonee.multi_exit.graphs.network import carries_graphs, load_graph_network
    from persephonee.multi_exit.graphs.sessions import require_providers

    has_torch = _is_installed("torch")
    on_graphs = runtime.runtime == "onnx" or runtime.graphs == "int8"
    if runtime.runtime == "auto" and not on_graphs:
        on_graphs = not has_torch or (compute.device != "cuda" and not trains_heads and carries_graphs(folder))
    if on_graphs and trains_heads:
        raise ClientSettingsError(
            "schedule=paper trains the exits' convolutions, which needs PyTorch: take --schedule fast, or "
            "pip install 'persephonee[train]'."
        )
    if on_graphs:
        providers = require_providers(runtime.provider_names)
        return load_graph_network(folder, threads=runtime.threads, providers=providers, kind=runtime.graphs)
    from persephonee.multi_exit.storage import load_network

    device = compute.torch_device()
    network, metadata = load_network(folder, sources)
    return network.to(device), metadata


def load_with_torch_or_graphs(folder: Path, sources: tuple[str, ...]) -> "tuple[Network, ModelMetadata]":
    """Return the network on PyTorch where it is installed, since it takes up all exits, and on its graphs elsewhere.

    Raises:
        MultiExitError: the model cannot be loaded.
    """
    if _is_installed("torch"):
        from persephonee.multi_exit.storage import load_network

        return load_network(folder, sources)
    from persephonee.multi_exit.graphs.network import load_graph_network

    return load_graph_network(folder)


def _is_installed(package: str) -> bool:
    try:
        found = importlib.util.find_spec(package)
        # a folder of this name in the working directory has no origin
        return found is not None and found.origin is not None
    except (ImportError, ValueError):
        # somebody forbids it
        return False
