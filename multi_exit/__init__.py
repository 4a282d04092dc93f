"""The multi-exit network: cut a CNN into stages, attach early exits, count their cost, save and load them.

Runs on both sides, server and device, and imports nothing else of this project.
"""

from multi_exit.building import build_network
from multi_exit.costs import CostTable, ExitCost
from multi_exit.errors import MultiExitError
from multi_exit.losses import LossWeights, joint_loss, personalisation_loss
from multi_exit.network import MultiExitNetwork, NetworkSpec
from multi_exit.storage import ModelMetadata, load_network, save_network

__all__ = [
    "CostTable",
    "ExitCost",
    "LossWeights",
    "ModelMetadata",
    "MultiExitError",
    "MultiExitNetwork",
    "NetworkSpec",
    "build_network",
    "joint_loss",
    "load_network",
    "personalisation_loss",
    "save_network",
]
