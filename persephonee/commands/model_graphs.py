"""The graphs that a model carries for devices without PyTorch, as the verbs that make models write them."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persephonee.multi_exit.network import MultiExitNetwork

log = logging.getLogger("persephonee.graphs")


def write_graphs_if_possible(network: "MultiExitNetwork", out: Path) -> None:
    """Write the graphs beside a model's weights; a model without them still serves whoever has PyTorch."""
    from persephonee.multi_exit.graphs.writing import GraphError, write_graphs

    try:
        write_graphs(network, out)
    except GraphError as error:
        log.warning("The model carries no graphs, so devices need PyTorch for it: %s", error)
