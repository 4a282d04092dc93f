"""Save and load a multi-exit network: a folder with `network.json` and `weights-<fingerprint>.safetensors`.

`network.json` is replaced last and names the weights, so a folder always holds the old model or the new one.
"""

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.multi_exit.checked_json import read_json_object, without_digest, write_with_digest
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.settings import DEFAULT_SOURCES, NetworkSpec, SpecifiedNetwork, fingerprint_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from persephonee.multi_exit.network import MultiExitNetwork

FORMAT = 1
STAGES = "stages."
"""With it begin the names of the backbone's arrays."""
_WEIGHTS_NAME = re.compile(r"weights-[0-9a-f]{12}\.safetensors")
GRAPH_NAME = re.compile(r"graph-\d+-[0-9a-f]{12}\.onnx")


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What is known of a saved model besides its weights.

    Attributes:
        dataset: the data source that it was trained on.
        trained_on: client ids of the users whose samples training or validation saw.
        class_names: K names, or empty.
        history: one dictionary per epoch.
        settings: of the training.
        calibration: of the M+1 exits; None where nobody has calibrated them, as in models of earlier versions.
        risk_pools: what users who trained nothing lose under each policy, as JSON; devices check it when they use it.
    """

    dataset: str = ""
    trained_on: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    calibration: ExitCalibration | None = None
    risk_pools: dict[str, Any] = field(default_factory=dict)


def save_network(network: "MultiExitNetwork", folder: Path, metadata: ModelMetadata) -> str:
    """Write the network to `folder`, atomically, and return its fingerprint.

    Raises:
        OSError: the folder cannot be written; what it held before is untouched.
    """
    import safetensors.torch
    import torch

    fingerprint = network.fingerprint
    # copies: a module that serves in two stages would be stored by reference, which safetensors refuses
    tensors = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in network.state_dict().items()
    }
    data, fingerprints = safetensors.torch.save(tensors), (fingerprint, network.backbone_fingerprint)
    _write(folder, data, fingerprints, network.spec, metadata, _graphs_in(folder, fingerprint))
    return fingerprint


def save_arrays(
    spec: NetworkSpec, arrays: Mapping[str, NDArray[Any]], folder: Path, metadata: ModelMetadata, graphs: dict[str, Any]
) -> None:
    """Write a network that came as arrays, without PyTorch.

    Args:
        spec: of the network.
        arrays: named as its state_dict names them.
        folder: that holds its graphs.
        metadata: what is known of it.
        graphs: what `network.json` is to say of them.

    Raises:
        OSError: the folder cannot be written.
    """
    import safetensors.numpy

    backbone = {name.removeprefix(STAGES): array for name, array in arrays.items() if name.startswith(STAGES)}
    fingerprints = (fingerprint_of(spec, sorted(arrays.items())), fingerprint_of(spec, sorted(backbone.items())))
    _write(folder, safetensors.numpy.save(dict(arrays)), fingerprints, spec, metadata, graphs)


def _write(
    folder: Path,
    data: bytes,
    fingerprints: tuple[str, str],
    spec: NetworkSpec,
    metadata: ModelMetadata,
    graphs: dict[str, Any] | None,
) -> None:
    weights = f"weights-{fingerprints[0][:12]}.safetensors"
    write_bytes_atomically(folder / weights, data)
    description = {
        "format": FORMAT,
        "fingerprint": fingerprints[0],
        "backbone_fingerprint": fingerprints[1],
        "weights": weights,
        "spec": asdict(spec),
        "metadata": asdict(metadata),
    }
    # graphs belong to the weights that they were made of (multi_exit/graphs)
    write_with_digest(folder / "network.json", {**description, **({"graphs": graphs} if graphs else {})})
    for stale in folder.iterdir():
        is_stale_weights = _WEIGHTS_NAME.fullmatch(stale.name) and stale.name != weights
        if is_stale_weights or (GRAPH_NAME.fullmatch(stale.name) and not graphs):
            stale.unlink(missing_ok=True)


def _graphs_in(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return what a folder says of the graphs of the network with this fingerprint; None where it has none."""
    try:
        description = read_description(folder)
    except ModelFileError:
        return None
    graphs = description.get("graphs") if description["fingerprint"] == fingerprint else None
    return graphs if isinstance(graphs, dict) else None


def load_network(
    folder: Path, allowed: tuple[str, ...] = DEFAULT_SOURCES, backbone: "nn.Module | None" = None
) -> "tuple[MultiExitNetwork, ModelMetadata]":
    """Return the network in `folder`, in eval() mode and with its calibration, and what is known of it.

    Args:
        folder: that `save_network` wrote.
        allowed: the sources from which this machine builds backbones; nothing is ever unpickled.
        backbone: the CNN, where the network was built from one in memory; its weights do not matter.

    Raises:
        ModelFileError: the folder is missing, cut off, or its weights do not match its description.
        BackboneError: the backbone is not allowed or not known here.
    """
    from persephonee.multi_exit.building import rebuild_network

    description = read_description(folder)
    spec, metadata = read_spec(folder, description)
    network = rebuild_network(spec, allowed, backbone)
    load_tensors(network, _read_tensors(folder / description["weights"]), folder)
    if network.fingerprint != description["fingerprint"]:
        raise ModelFileError(
            f"the weights in {folder} are not those that network.json describes: copy the whole folder again."
        )
    if metadata.calibration is not None:
        metadata.calibration.require_fit(network.num_exits, network.num_classes)
    network.calibration, network.risk_pools = metadata.calibration, metadata.risk_pools
    return network, metadata


@dataclass(frozen=True, kw_only=True)
class SavedModel(SpecifiedNetwork):
    """A model in a folder, by what its network.json says; its network is built when it is first asked for."""

    folder: Path
    sources: tuple[str, ...]
    fingerprint: str
    spec: NetworkSpec
    metadata: ModelMetadata

    @classmethod
    def read(cls, folder: Path, sources: tuple[str, ...] = DEFAULT_SOURCES) -> "SavedModel":
        """Read the description of the model in `folder`, and not its weights.

        Raises:
            ModelFileError: the folder is no model folder, or its description is damaged.
        """
        description = read_description(folder)
        spec, metadata = read_spec(folder, description)
        return cls(
            folder=folder, sources=sources, fingerprint=str(description["fingerprint"]), spec=spec, metadata=metadata
        )

    @cached_property
    def network(self) -> "MultiExitNetwork":
        """The network, as `load_network` returns it, with what that raises."""
        return load_network(self.folder, self.sources)[0]


def read_description(folder: Path) -> dict[str, Any]:
    """Return `network.json` of a model folder without building anything.

    Raises:
        ModelFileError: the folder is no model folder, or the file is cut off.
    """
    path = folder / "network.json"
    if not path.is_file():
        raise ModelFileError(f"{folder} is no model folder, it has no network.json: give what `pretrain --out` wrote.")
    try:
        description = read_json_object(path)
        if description.get("format") == FORMAT:
            description = without_digest(description)
            missing = {"fingerprint", "backbone_fingerprint", "weights", "spec", "metadata"} - description.keys()
            if missing or not _WEIGHTS_NAME.fullmatch(description["weights"]):
                raise ValueError(f"without {sorted(missing)}" if missing else "its weights have no name of ours")
    except (OSError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path} is damaged ({error}): copy or save the model again.") from None
    if description.get("format") != FORMAT:
        raise ModelFileError(
            f"{path} has format {description.get('format')!r}, expected {FORMAT}: use the release of persephonee that "
            "wrote it, or save the model again."
        )
    return description


def read_spec(folder: Path, description: dict[str, Any]) -> tuple[NetworkSpec, ModelMetadata]:
    """Return what the description of a model says of the network, and what is known of it besides.

    Raises:
        ModelFileError: it says something else.
    """
    spec = NetworkSpec.from_json(json.dumps(description["spec"]))
    return spec, _metadata(description["metadata"], folder, spec.num_classes)


def load_tensors(network: "MultiExitNetwork", tensors: "dict[str, Tensor]", source: Path | str) -> None:
    """Load all tensors of the network.

    Raises:
        ModelFileError: one is missing, unknown, or of another shape or type.
    """
    own = network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            where = "misses" if name not in tensors else "has the unknown"
            raise ModelFileError(f"{source} {where} tensor {name!r}: it is of another architecture, use the right one.")
        got, expected = tensors[name], own[name]
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise ModelFileError(
                f"tensor {name!r} in {source} is {got.dtype} {tuple(got.shape)}, expected {expected.dtype} "
                f"{tuple(expected.shape)}: it is of another architecture, use the right one."
            )
        if got.is_floating_point() and not bool(got.isfinite().all()):
            raise ModelFileError(
                f"tensor {name!r} in {source} holds a number that is not finite: copy the model again, or train it."
            )
    network.load_state_dict(tensors)


def _read_tensors(path: Path) -> "dict[str, Tensor]":
    import safetensors.torch

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is no regular file")
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{path} is missing or cut off ({error}): copy or save the model again.") from None


def _metadata(values: dict[str, Any], folder: Path, num_classes: int) -> ModelMetadata:
    try:
        sequences = {key: tuple(values[key]) for key in ("trained_on", "class_names", "history")}
        calibration = values.get("calibration")
        found = None if calibration is None else ExitCalibration.from_dict(calibration)
        metadata = ModelMetadata(**{**values, **sequences, "calibration": found})
        _check_types(metadata, num_classes)
        return metadata
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"the metadata in {folder} is damaged ({error}): save the model again.") from None


def _check_types(metadata: ModelMetadata, num_classes: int) -> None:
    texts = (metadata.dataset, *metadata.trained_on, *metadata.class_names)
    objects = (metadata.settings, metadata.risk_pools, *metadata.history)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(value, dict) for value in objects):
        raise TypeError("a value is of another type")
    if len(metadata.class_names) not in (0, num_classes):
        raise TypeError(f"{len(metadata.class_names)} class names for {num_classes} classes")
