"""What of Flower is used although it is not public, in one place; `test_flower_private.py` notices when it changes.

A name is loaded when it is first asked for: a device needs neither the server's grid nor the accountant of epsilon.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.common.constant import ErrorCode as ErrorCode
    from flwr.common.serde import recorddict_to_proto as recorddict_to_proto
    from flwr.supercore.differential_privacy import add_gaussian_noise_inplace as add_gaussian_noise_inplace
    from flwr.supercore.differential_privacy import compute_clip_model_update as compute_clip_model_update
    from flwr.supercore.privacy_accounting import GaussianPrivacyEvent as GaussianPrivacyEvent
    from flwr.supercore.privacy_accounting import NeighboringRelation as NeighboringRelation
    from flwr.supercore.privacy_accounting import PrivacyConfig as PrivacyConfig
    from flwr.supercore.privacy_accounting import SamplingMethod as SamplingMethod
    from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant as RdpAccountant
    from flwr.supercore.task_identity import TaskIdentity as TaskIdentity
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid as InMemoryGrid

REASONS = {
    "flwr.common.constant:ErrorCode": "an error reply carries a number, and only these names say what happened",
    "flwr.common.serde:recorddict_to_proto": "the bytes of a reply are counted as Flower writes it",
    "flwr.superlink.grid.inmemory_grid:InMemoryGrid": "the server knows whether nodes are simulated; a node may claim",
    "flwr.supercore.task_identity:TaskIdentity": "a study merges by Flower's strategies, which make messages in runs",
    "flwr.supercore.differential_privacy:compute_clip_model_update": "its mods clip whole models, and here exits alone",
    "flwr.supercore.differential_privacy:add_gaussian_noise_inplace": "its mods add noise to whole models likewise",
    "flwr.supercore.privacy_accounting:GaussianPrivacyEvent": "the accountant of epsilon has no public name yet",
    "flwr.supercore.privacy_accounting:NeighboringRelation": "the accountant takes it",
    "flwr.supercore.privacy_accounting:PrivacyConfig": "the accountant takes it",
    "flwr.supercore.privacy_accounting:SamplingMethod": "the accountant takes it",
    "flwr.supercore.privacy_accounting.rdp_accountant:RdpAccountant": "the accountant itself",
}
"""Each name, behind the module where it is, with the reason why no public name does."""

_MODULE_OF = {name: module for module, name in (place.split(":") for place in REASONS)}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
