"""Who a client is and what it may use: a device by its own node configuration, a simulated node by the run's settings.

A device's node configuration (`flower-supernode --node-config '...'`) names

    client-id      who this is; stable over restarts, unique in the federation
    store          folder of its exits, policy and state
    dataset, data-path, user-column, ...   its data, as in the run settings
    model-store    folder of models by fingerprint; default: `models` in the store
    backbones      sources that it builds backbones, heads and data from, with commas; default: torchvision,timm
    share-curve    true allows its risk curve to leave it, for policies chosen with those of others; default: false
    share-exits    true allows its exits to leave it when a run asks for them, and merged ones in; default: false
    device         where it computes: cuda, cpu, or auto, a GPU where there is one; default: auto
    runtime        onnx runs the graphs that a model carries, torch needs PyTorch; default: torch where it is installed
    providers      ONNX Runtime's execution providers, with commas; default: CPU
    threads        of ONNX Runtime; default: one for each core
    models         fingerprints of the models that it answers for, or of their graphs, with commas; default: the first
                   that it is sent

Nothing here comes from the server: a run configuration cannot make a device read another folder or share anything.
"""

import functools
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import ModelClasses, Partitions, UserSamples
from persephonee.data_partitions.seeds import uniform_draw
from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.user_ids import folder_name, id_complaint, shown
from persephonee.fl_app.client_side.asked import AskedFile
from persephonee.fl_app.errors import RunConfigError
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.settings.run_config import Value, from_flat
from persephonee.fl_app.wire.model_fit import check_fit, classes_of
from persephonee.fl_app.wire.model_store import ModelStore
from persephonee.multi_exit.graphs.sessions import require_providers
from persephonee.multi_exit.settings import DEFAULT_SOURCES, ComputeSettings, RuntimeSettings
from persephonee.multi_exit.storage import ModelMetadata

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network

_IN_SIMULATION = frozenset({"partition-id", "num-partitions"})
_RUNTIME_KEYS = ("runtime", "providers", "threads")
_OWN_KEYS = (
    "client-id",
    "store",
    "model-store",
    "backbones",
    "share-curve",
    "share-exits",
    "models",
    "device",
    *_RUNTIME_KEYS,
)


@dataclass(frozen=True, kw_only=True)
class ClientNode:
    """One client, as its own machine describes it."""

    client_id: str
    """A device's id; empty on a simulated node, which plays the user that the server names."""

    partition_id: int
    """Of a simulated node, from 0; -1 on a device."""

    data: DataSettings
    stores: Path
    """A simulated node: the folder of all clients' stores. A device: its own store."""

    model_store: Path | None
    model_seen: Path | None
    sources: tuple[str, ...]
    sharing_allowed: bool
    """Whether the device's owner lets exits leave it; a simulated node asks `permits_sharing` once it plays a user."""

    permits_curve: bool = False
    """Whether the user's risk curve may leave: by a device's own configuration; a simulated node's always may."""

    models_allowed: tuple[str, ...] = ()
    """Fingerprints of the models that a device without sharing answers for; empty for the first that it is sent."""

    sharing_fraction: float = 0.0
    """Fraction of a simulation's users who let exits leave their devices."""

    seed: int = 0
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    runtime: RuntimeSettings = field(default_factory=lambda: RuntimeSettings(runtime="torch"))
    """What a device runs its network on; a simulated node runs PyTorch."""

    @property
    def is_simulated(self) -> bool:
        """Whether this node plays a user of a simulation."""
        return self.partition_id >= 0

    @classmethod
    def of(cls, node_config: Mapping[str, Value], settings: AppSettings, run_id: int) -> "ClientNode":
        """Read a node configuration.

        Raises:
            RunConfigError: an unknown key, a wrong type, a key that is missing, or one of a simulation on a device.
        """
        of_simulation = sorted(_IN_SIMULATION & node_config.keys())
        if of_simulation and not in_simulation():
            raise RunConfigError(
                f"The node configuration has {of_simulation[0]}, which would let the server say whose data this device "
                "reads and belongs to simulations only: leave it out, and give client-id and store."
            )
        if "client-id" in node_config:
            return cls._device({k: v for k, v in node_config.items() if k not in _IN_SIMULATION})
        if "partition-id" not in node_config:
            raise RunConfigError("The node configuration has no client-id; start the SuperNode with one.")
        paths = settings.paths
        return cls(
            client_id="",
            partition_id=int(node_config["partition-id"]),
            data=settings.data,
            stores=paths.client_store or settings.run_folder(run_id) / "clients",
            model_store=paths.model_store,
            model_seen=settings.model_folder(run_id),
            sources=settings.sources,
            sharing_allowed=settings.sharing.sharing_fraction == 1,
            permits_curve=True,
            sharing_fraction=settings.sharing.sharing_fraction,
            seed=settings.seed,
            compute=settings.compute,
        )

    @classmethod
    def _device(cls, config: Mapping[str, Value]) -> "ClientNode":
        own = {key: config[key] for key in _OWN_KEYS if key in config}
        for key, value in own.items():
            wanted = {"share-exits": bool, "share-curve": bool, "threads": int}.get(key, str)
            if type(value) is not wanted or value == "":
                raise RunConfigError(f"node configuration: {key}={value!r} is wrong; expected a {wanted.__name__}.")
        complaint = id_complaint(str(own["client-id"]))
        if complaint:
            raise RunConfigError(f"node configuration: client-id {shown(str(own['client-id']))} is no id: {complaint}.")
        if "store" not in own:
            raise RunConfigError("The node configuration has no store; name the folder of this client's exits.")
        store = Path(str(own["store"])).expanduser()
        return cls(
            client_id=str(own["client-id"]),
            partition_id=-1,
            data=from_flat(DataSettings, {key: value for key, value in config.items() if key not in own}),
            stores=store,
            model_store=Path(str(own.get("model-store", store / "models"))).expanduser(),
            model_seen=None,
            sources=tuple(str(own.get("backbones", ",".join(DEFAULT_SOURCES))).split(",")),
            sharing_allowed=bool(own.get("share-exits", False)),
            permits_curve=bool(own.get("share-curve", False)),
            models_allowed=tuple(name.strip() for name in str(own.get("models", "")).split(",") if name.strip()),
            compute=from_flat(ComputeSettings, {"device": own.get("device", "auto")}),
            runtime=_runtime_of({key: own[key] for key in _RUNTIME_KEYS if key in own}),
        )

    def models(self) -> ModelStore:
        """Return the models that this client has."""
        return ModelStore(self.model_store, seen=self.model_seen, sources=self.sources, runtime=self.runtime)

    def user(self, named_by_server: str) -> str:
        """Return whose data this client holds: a device's own id, or the user that a simulated node is to play."""
        return named_by_server if self.is_simulated else self.client_id

    def permits_sharing(self, user: str) -> bool:
        """Return whether the user's exits may leave: by a device's own configuration, or drawn for a simulated user."""
        if not self.is_simulated:
            return self.sharing_allowed
        return uniform_draw(self.seed, user, "sharing permission") < self.sharing_fraction

    @property
    def takes_exits(self) -> bool:
        """Whether exits that others made may be measured on this client's data: a device's only if it shares its own.

        Crafted ones read private data out of the figures; see docs/privacy.md.
        """
        return self.is_simulated or self.sharing_allowed

    def asked(self) -> AskedFile:
        """Return what this device remembers of what it was asked."""
        return AskedFile(self.stores, self.models_allowed, any_model=self.sharing_allowed)

    def samples(self, user: str, network: "Network", metadata: ModelMetadata) -> UserSamples:
        """Load the user's samples, which the network is to take.

        Raises:
            DataError: the data is missing or broken.
            AppError: it has no such user, or the network was made for other data.
        """
        partitions = _open(self.data, classes_of(network, metadata), self.sources)
        check_fit(network, partitions)
        if user not in partitions.client_ids:
            raise RunConfigError(f"The data has no user {user!r}; it has {partitions.num_partitions} others.")
        return partitions.load_partition(partitions.client_ids.index(user))

    def store(self, user: str) -> Path:
        """Return the folder of this client's exits, policy and state."""
        return store_of(self.stores, user) if self.is_simulated else self.stores


def _runtime_of(own: Mapping[str, Value]) -> RuntimeSettings:
    """Return what a device runs its network on: PyTorch where it is installed, unless the owner says otherwise."""
    runtime = from_flat(RuntimeSettings, own)
    if runtime.runtime == "auto":
        runtime = replace(runtime, runtime="torch" if importlib.util.find_spec("torch") else "onnx")
    if runtime.runtime == "onnx":
        # a missing provider is better known before the first round
        runtime = replace(runtime, providers=",".join(require_providers(runtime.provider_names)))
    return runtime


def in_simulation() -> bool:
    """Return whether this process is a worker of Flower's simulation engine, which runs clients in Ray.

    No message can claim it: a device's messages are answered in processes of their own, in which nobody starts Ray.
    """
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def store_of(stores: Path, client_id: str) -> Path:
    """Return a simulated client's folder."""
    return stores / folder_name(client_id)


@functools.lru_cache(maxsize=2)
def _open(settings: DataSettings, model: ModelClasses, allowed: tuple[str, ...]) -> Partitions:
    # once per process: the index of a large data set takes seconds to read
    return open_partitions(settings, model=model, allowed=allowed)
