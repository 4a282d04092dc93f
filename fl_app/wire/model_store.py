"""The global model on a client: one copy per process, one folder per fingerprint on disk, never a pickle."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire.foreign_bytes import read_array, refusing
from persephonee.fl_app.wire.limits import CLASS_NAME_CHARACTERS
from persephonee.fl_app.wire.value_kinds import Text
from persephonee.multi_exit.building import rebuild_network
from persephonee.multi_exit.checked_json import parse_json_object
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.network import MultiExitNetwork, NetworkSpec
from persephonee.multi_exit.settings import DEFAULT_SOURCES
from persephonee.multi_exit.storage import ModelMetadata, load_network, load_tensors, read_description, save_network

Model = tuple[MultiExitNetwork, ModelMetadata]
"""A network, and what a client knows of it."""

# A simulation's actors live long and play many clients, who all ask for the same model: building it once saves the
# tracing. It is shared, so nobody may change it; `ModelStore.find` hands out nothing else than this object.
_IN_MEMORY: dict[str, Model] = {}


class ModelStore:
    """The models that a client has.

    Args:
        folder: holds one model folder per fingerprint; None keeps received models in this process only.
        seen: a model folder that is there already, such as the one that a simulation was started with.
        sources: where backbones may come from, by this client's own configuration.
    """

    def __init__(
        self, folder: Path | None, seen: Path | None = None, sources: tuple[str, ...] = DEFAULT_SOURCES
    ) -> None:
        self._folder = folder
        self._seen = seen
        self._sources = sources

    def holds(self, fingerprint: str) -> bool:
        """Return whether the model lies on disk; a copy in memory may be gone with the next process."""
        return self._place(fingerprint) is not None

    def find(self, fingerprint: str) -> Model | None:
        """Return the model, which the caller must copy before changing it, or None.

        Raises:
            MultiExitError: the folder is damaged, or its backbone is not allowed here.
        """
        if fingerprint not in _IN_MEMORY:
            place = self._place(fingerprint)
            if place is None:
                return None
            _keep(fingerprint, load_network(place, self._sources))
        return _IN_MEMORY[fingerprint]

    def receive(self, fingerprint: str, content: RecordDict) -> Model:
        """Build the model that came with a message, keep it, and return it.

        Raises:
            WireError: what came is not the model that the fingerprint names.
            MultiExitError: its backbone is not allowed here, or its arrays do not fit.
        """
        spec = NetworkSpec.from_json(str(content.config_records["spec"]["json"]))
        network = rebuild_network(spec, self._sources)
        arrays = _arrays(content.array_records["model"], network)
        load_tensors(network, arrays, "the model that was received")
        if network.fingerprint != fingerprint:
            raise WireError("the model that was received is not the one that the request names; send it again.")
        # without more: whose data trained the model is none of a device's business
        network.calibration = _calibration(content, network)
        network.risk_pools = _risk_pools(content, network)
        metadata = ModelMetadata(
            class_names=_class_names(content, network.num_classes),
            calibration=network.calibration,
            risk_pools=network.risk_pools,
        )
        if self._folder is not None:
            save_network(network, self._folder / fingerprint, metadata)
        return _keep(fingerprint, (network, metadata))

    def _place(self, fingerprint: str) -> Path | None:
        own = () if self._folder is None else (self._folder / fingerprint,)
        seen = () if self._seen is None else (self._seen,)
        return next((place for place in (*own, *seen) if _fingerprint_of(place) == fingerprint), None)


def model_records(
    network: MultiExitNetwork, class_names: tuple[str, ...] = ()
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


def _arrays(record: ArrayRecord, network: MultiExitNetwork) -> dict[str, torch.Tensor]:
    """Return what arrived for a network, each array checked against the tensor that it is for."""
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


def _class_names(content: RecordDict, num_classes: int) -> tuple[str, ...]:
    if "classes" not in content:
        return ()
    with refusing("classes/names"):
        names = json.loads(str(content.config_records["classes"]["names"]))
        one = Text(length=CLASS_NAME_CHARACTERS)
        if not isinstance(names, list) or len(names) != num_classes or any(one.complaint(name) for name in names):
            raise WireError(f"classes/names: expected the names of {num_classes} classes as a JSON list.")
    return tuple(names)


def _calibration(content: RecordDict, network: MultiExitNetwork) -> ExitCalibration | None:
    if "calibration" not in content:
        return None
    with refusing("calibration/json"):
        calibration = ExitCalibration.from_dict(json.loads(str(content.config_records["calibration"]["json"])))
    calibration.require_fit(network.num_exits, network.num_classes)
    return calibration


def _risk_pools(content: RecordDict, network: MultiExitNetwork) -> dict[str, Any]:
    if "risk-pools" not in content:
        return {}
    with refusing("risk-pools/json"):
        pools = parse_json_object(str(content.config_records["risk-pools"]["json"]))
    for pool in pools.values():
        RiskPool.from_json(pool, network.num_exits)
    return pools


def _keep(fingerprint: str, model: Model) -> Model:
    _IN_MEMORY.clear()
    _IN_MEMORY[fingerprint] = model
    return model


def _fingerprint_of(folder: Path) -> str | None:
    try:
        return str(read_description(folder)["fingerprint"])
    except ModelFileError:
        return None
