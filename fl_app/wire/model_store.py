"""The global model on a client: one copy per process, one folder per fingerprint on disk, never a pickle."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire.foreign_bytes import read_any_array, read_array, refusing
from persephonee.fl_app.wire.limits import CLASS_NAME_CHARACTERS
from persephonee.fl_app.wire.value_kinds import Text
from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.multi_exit.checked_json import parse_json_object
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.graphs.checking import check_graph
from persephonee.multi_exit.graphs.description import ModelGraphs, graphs_fingerprint
from persephonee.multi_exit.graphs.network import load_graph_network
from persephonee.multi_exit.settings import DEFAULT_SOURCES, NetworkSpec, RuntimeSettings, fingerprint_of
from persephonee.multi_exit.storage import (
    ModelMetadata,
    load_network,
    load_tensors,
    read_description,
    save_arrays,
    save_network,
)

if TYPE_CHECKING:
    import torch

    from persephonee.clients.personalisation.features import Network
    from persephonee.multi_exit.network import MultiExitNetwork

    Model = tuple[Network, ModelMetadata]
    """A network, and what a client knows of it."""

# A simulation's actors live long and play many clients, who all ask for the same model: building it once saves the
# tracing. It is shared, so nobody may change it; `ModelStore.find` hands out nothing else than this object.
_IN_MEMORY: dict[str, "Model"] = {}


class ModelStore:
    """The models that a client has.

    Args:
        folder: holds one model folder per fingerprint; None keeps received models in this process only.
        seen: a model folder that is there already, such as the one that a simulation was started with.
        sources: where backbones may come from, by this client's own configuration.
        runtime: what the network is to run on.
    """

    def __init__(
        self,
        folder: Path | None,
        seen: Path | None = None,
        sources: tuple[str, ...] = DEFAULT_SOURCES,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        self._folder = folder
        self._seen = seen
        self._sources = sources
        self._runtime = runtime or RuntimeSettings(runtime="torch")

    @property
    def needs_graphs(self) -> bool:
        """Whether a model is of use with its graphs alone, since this client has no PyTorch, or is not to use it."""
        return self._runtime.runtime == "onnx"

    def holds(self, fingerprint: str, graphs: str = "") -> bool:
        """Return whether the model lies on disk; a copy in memory may be gone with the next process.

        Args:
            fingerprint: of the model.
            graphs: fingerprint of its graphs, which a client on graphs has to have; empty takes any.
        """
        return self._place(fingerprint, graphs) is not None

    def find(self, fingerprint: str, graphs: str = "") -> "Model | None":
        """Return the model, which the caller must copy before changing it, or None; arguments as of `holds`.

        Raises:
            MultiExitError: the folder is damaged, or its backbone is not allowed here.
        """
        key = self._key(fingerprint, graphs)
        if key not in _IN_MEMORY:
            place = self._place(fingerprint, graphs)
            if place is None:
                return None
            _keep(key, self._load(place))
        return _IN_MEMORY[key]

    def receive(self, fingerprint: str, content: RecordDict, graphs: str = "") -> "Model":
        """Build the model that came with a message, keep it, and return it; arguments as of `holds`.

        Raises:
            WireError: what came is not the model that the fingerprint names.
            MultiExitError: its backbone is not allowed here, or its arrays do not fit.
        """
        spec = NetworkSpec.from_json(str(content.config_records["spec"]["json"]))
        # without more: whose data trained the model is none of a device's business
        metadata = ModelMetadata(
            class_names=_class_names(content, spec.num_classes),
            calibration=_calibration(content, spec),
            risk_pools=_risk_pools(content, spec),
        )
        if self.needs_graphs:
            folder = self._keep_graphs(fingerprint, content, spec, metadata, graphs)
            return _keep(self._key(fingerprint, graphs), self._load(folder))
        from persephonee.multi_exit.building import rebuild_network

        network = rebuild_network(spec, self._sources)
        load_tensors(network, _tensors(content.array_records["model"], network), "the model that was received")
        if network.fingerprint != fingerprint:
            raise _not_the_one()
        network.calibration, network.risk_pools = metadata.calibration, metadata.risk_pools
        if self._folder is not None:
            save_network(network, self._folder / fingerprint, metadata)
        return _keep(self._key(fingerprint, graphs), (network, metadata))

    def _key(self, fingerprint: str, graphs: str) -> str:
        """Return under which name a model is kept in memory: as graphs it is another object."""
        return f"{fingerprint} on graphs {graphs}" if self.needs_graphs else fingerprint

    def _keep_graphs(
        self, fingerprint: str, content: RecordDict, spec: NetworkSpec, metadata: ModelMetadata, named: str
    ) -> Path:
        if self._folder is None or "graphs" not in content:
            raise WireError("this device has no PyTorch, and the model that was sent carries no graphs; write them.")
        record = content.array_records["model"]
        arrays = {name[:200]: read_any_array(record[name], f"model/{name[:40]}") for name in record}
        if fingerprint_of(spec, sorted(arrays.items())) != fingerprint:
            raise _not_the_one()
        with refusing("graphs/json"):
            described = parse_json_object(str(content.config_records["graphs"]["json"]))
        graphs, files = ModelGraphs.from_dict(described, spec.num_exits), content.array_records["graph-files"]
        if graphs.fingerprint(fingerprint) != named:
            raise WireError("the graphs that were received are not those that the request names; send them again.")
        if set(files) != {stage.file for stage in graphs.stages}:
            raise WireError("graph-files: expected the files that the graphs' description names.")
        # beside others of the same weights, which this device may answer for
        folder = self._folder / named
        for stage in graphs.stages:
            data = read_any_array(files[stage.file], f"graph-files/{stage.file}").tobytes()
            if hashlib.sha256(data).hexdigest() != stage.sha256:
                raise WireError(f"graph-files/{stage.file}: its content is not that of its digest.")
            check_graph(data)
            write_bytes_atomically(folder / stage.file, data)
        save_arrays(spec, arrays, folder, metadata, graphs.described(fingerprint))
        return folder

    def _load(self, place: Path) -> "Model":
        if not self.needs_graphs:
            return load_network(place, self._sources)
        return load_graph_network(place, threads=self._runtime.threads, providers=self._runtime.provider_names)

    def _place(self, fingerprint: str, graphs: str) -> Path | None:
        # by the model's fingerprint, where earlier versions kept graphs too
        names = (graphs, fingerprint) if self.needs_graphs and graphs else (fingerprint,)
        own = () if self._folder is None else tuple(self._folder / name for name in names)
        seen = () if self._seen is None else (self._seen,)
        return next((place for place in (*own, *seen) if self._is(place, fingerprint, graphs)), None)

    def _is(self, place: Path, fingerprint: str, graphs: str) -> bool:
        """Return whether a folder holds the model, with the graphs that this client needs."""
        try:
            if read_description(place)["fingerprint"] != fingerprint:
                return False
            found = graphs_fingerprint(place) if self.needs_graphs else ""
        except ModelFileError:
            return False
        return not self.needs_graphs or (bool(found) and graphs in ("", found))


def model_records(
    network: "MultiExitNetwork", class_names: tuple[str, ...] = ()
) -> dict[str, ArrayRecord | ConfigRecord]:
    """Return the records that carry a model to a client that lacks it."""
    records: dict[str, ArrayRecord | ConfigRecord] = {
        "model": ArrayRecord(torch_state_dict=network.state_dict()),
        "spec": ConfigRecord({"json": network.spec.to_json()}),
    }
    if class_names:
        # a client whose labels are words numbers them by these
        records["classes"] = ConfigRecord({"names": json.dumps(class_names)})
    if network.calibration is not None:
        # what a device needs to find its user's class frequencies, which then stay there
        records["calibration"] = ConfigRecord({"json": json.dumps(asdict(network.calibration))})
    if network.risk_pools:
        # what a device needs for a policy that keeps its promise
        records["risk-pools"] = ConfigRecord({"json": json.dumps(network.risk_pools)})
    return records


def graph_records(folder: Path, num_exits: int) -> dict[str, ArrayRecord | ConfigRecord]:
    """Return the records that carry a model's graphs to a client without PyTorch; none where it has none."""
    description = read_description(folder).get("graphs")
    if description is None:
        return {}
    graphs = ModelGraphs.from_dict(description, num_exits)
    files = {one.file: np.frombuffer((folder / one.file).read_bytes(), dtype=np.uint8) for one in graphs.stages}
    return {
        "graphs": ConfigRecord({"json": json.dumps(graphs.to_dict())}),
        "graph-files": ArrayRecord({name: Array(data) for name, data in files.items()}),
    }


def _tensors(record: ArrayRecord, network: "MultiExitNetwork") -> "dict[str, torch.Tensor]":
    """Return what arrived for a network, each array checked against the tensor that it is for."""
    import torch

    expected = network.state_dict()
    if set(record) != set(expected):
        name = min(set(record) ^ set(expected))
        raise WireError(f"the model that was received has or lacks the array {name[:40]!r}; send it again.")
    arrays = {}
    for name, tensor in expected.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        # a copy: the bytes of a message cannot be written to
        arrays[name] = torch.from_numpy(read_array(record[name], kind, tuple(tensor.shape), f"model/{name}").copy())
    return arrays


def _not_the_one() -> WireError:
    return WireError("the model that was received is not the one that the request names; send it again.")


def _class_names(content: RecordDict, num_classes: int) -> tuple[str, ...]:
    if "classes" not in content:
        return ()
    with refusing("classes/names"):
        names = json.loads(str(content.config_records["classes"]["names"]))
        one = Text(length=CLASS_NAME_CHARACTERS)
        if not isinstance(names, list) or len(names) != num_classes or any(one.complaint(name) for name in names):
            raise WireError(f"classes/names: expected the names of {num_classes} classes as a JSON list.")
    return tuple(names)


def _calibration(content: RecordDict, spec: NetworkSpec) -> ExitCalibration | None:
    if "calibration" not in content:
        return None
    with refusing("calibration/json"):
        calibration = ExitCalibration.from_dict(json.loads(str(content.config_records["calibration"]["json"])))
    calibration.require_fit(spec.num_exits, spec.num_classes)
    return calibration


def _risk_pools(content: RecordDict, spec: NetworkSpec) -> dict[str, Any]:
    if "risk-pools" not in content:
        return {}
    with refusing("risk-pools/json"):
        pools = parse_json_object(str(content.config_records["risk-pools"]["json"]))
    for pool in pools.values():
        RiskPool.from_json(pool, spec.num_exits)
    return pools


def _keep(key: str, model: "Model") -> "Model":
    _IN_MEMORY.clear()
    _IN_MEMORY[key] = model
    return model
