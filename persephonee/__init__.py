"""PersEPhonEE: a CNN's early exits, personalised on the user's own device (HotMobile'21, arXiv 2102.01393).

This is the front door: the names in `__all__` cover the life of one device and of one model. They load when they are
first used, so that `import persephonee` is fast and loads neither PyTorch nor Flower. Everything else is internal.

    import persephonee

    network, metadata = persephonee.load_network(Path("models/writers"))
    result = persephonee.personalise(network, samples)
"""

import importlib
from os import environ as _environ
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout, and in the bundle that `flwr run` makes, the folders of the code lie beside this package and not in
# it, since there a folder says where its code runs. An installed wheel has them inside, and nothing is added.
_HERE = Path(__file__).resolve().parent
if not (_HERE / "multi_exit").is_dir():
    __path__.append(str(_HERE.parent))

# ONNX Runtime's wheels from 1.32 on tell Microsoft that and how they are used, from the moment of the import, and leave
# a file behind; what a device does is nobody's business. Whoever wants it sets the variable to 0.
_environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME_OF = {
    # the multi-exit network
    "MultiExitNetwork": "multi_exit.network",
    "NetworkSpec": "multi_exit.network",
    "ModelMetadata": "multi_exit.storage",
    "build_network": "multi_exit.building",
    "load_network": "multi_exit.storage",
    "save_network": "multi_exit.storage",
    "LossWeights": "multi_exit.settings",
    # one user's samples
    "UserSamples": "data_partitions.samples",
    "SampleSplit": "data_partitions.user_splits",
    "SplitSettings": "data_partitions.settings",
    "split_samples": "data_partitions.user_splits",
    # one personalisation round
    "personalise": "clients.personalisation.personalise",
    "Personalisation": "clients.personalisation.personalise",
    "PersonalisationSettings": "clients.personalisation.settings",
    "PersonalisationReport": "clients.personalisation.reports",
    "ExitMetrics": "clients.personalisation.reports",
    "ExitPolicy": "clients.personalisation.policy",
    "ExitStore": "clients.personalisation.exit_store",
    # inference with the result
    "InferenceEngine": "clients.inference.inference_engine",
    "OnnxEngine": "clients.inference.onnx_engine",
    "export_onnx": "clients.inference.onnx_export",
    # the device that lives with its user
    "Device": "clients.runtime.device",
    "DeviceSettings": "clients.runtime.device_settings",
    # what a run measured
    "load_run": "server.results.frames",
    "RunFrames": "server.results.frames",
}

__all__ = [
    "Device",
    "DeviceSettings",
    "ExitMetrics",
    "ExitPolicy",
    "ExitStore",
    "InferenceEngine",
    "LossWeights",
    "ModelMetadata",
    "MultiExitNetwork",
    "NetworkSpec",
    "OnnxEngine",
    "Personalisation",
    "PersonalisationReport",
    "PersonalisationSettings",
    "RunFrames",
    "SampleSplit",
    "SplitSettings",
    "UserSamples",
    "build_network",
    "export_onnx",
    "load_network",
    "load_run",
    "personalise",
    "save_network",
    "split_samples",
]

if TYPE_CHECKING:
    from persephonee.clients.inference.inference_engine import InferenceEngine as InferenceEngine
    from persephonee.clients.inference.onnx_engine import OnnxEngine as OnnxEngine
    from persephonee.clients.inference.onnx_export import export_onnx as export_onnx
    from persephonee.clients.personalisation.exit_store import ExitStore as ExitStore
    from persephonee.clients.personalisation.personalise import Personalisation as Personalisation
    from persephonee.clients.personalisation.personalise import personalise as personalise
    from persephonee.clients.personalisation.policy import ExitPolicy as ExitPolicy
    from persephonee.clients.personalisation.reports import ExitMetrics as ExitMetrics
    from persephonee.clients.personalisation.reports import PersonalisationReport as PersonalisationReport
    from persephonee.clients.personalisation.settings import PersonalisationSettings as PersonalisationSettings
    from persephonee.clients.runtime.device import Device as Device
    from persephonee.clients.runtime.device_settings import DeviceSettings as DeviceSettings
    from persephonee.data_partitions.samples import UserSamples as UserSamples
    from persephonee.data_partitions.settings import SplitSettings as SplitSettings
    from persephonee.data_partitions.user_splits import SampleSplit as SampleSplit
    from persephonee.data_partitions.user_splits import split_samples as split_samples
    from persephonee.multi_exit.building import build_network as build_network
    from persephonee.multi_exit.network import MultiExitNetwork as MultiExitNetwork
    from persephonee.multi_exit.network import NetworkSpec as NetworkSpec
    from persephonee.multi_exit.settings import LossWeights as LossWeights
    from persephonee.multi_exit.storage import ModelMetadata as ModelMetadata
    from persephonee.multi_exit.storage import load_network as load_network
    from persephonee.multi_exit.storage import save_network as save_network
    from persephonee.server.results.frames import RunFrames as RunFrames
    from persephonee.server.results.frames import load_run as load_run


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'persephonee' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"persephonee.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
