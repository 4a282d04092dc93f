"""The multi-exit network without PyTorch: its frozen part runs on ONNX Runtime, its classifiers are NumPy arrays."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
import safetensors
from numpy.typing import NDArray

from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.exit_weights import (
    HEADS,
    ExitWeights,
    classifier_names,
    in_order,
    require_fit,
)
from persephonee.multi_exit.graphs.description import EMBEDDING, FEATURES, INPUT, LOGITS, ModelGraphs, int8_graphs
from persephonee.multi_exit.graphs.sessions import open_session, run_session
from persephonee.multi_exit.settings import Fingerprint, GraphKind, NetworkSpec, SpecifiedNetwork
from persephonee.multi_exit.storage import STAGES, ModelMetadata, read_description, read_spec

PIXELS_AT_ONCE = 6_272
"""In one run of a stage: 8 images of 28 px, or one of 224 px. More take more memory and, on one core, more time."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """What the frozen part makes of N images.

    Attributes:
        exits: what each of the M classifiers takes, float32 [N, D_i].
        last_logits: of the last exit, float32 [N, K].
    """

    exits: tuple[Floats, ...]
    last_logits: Floats


class GraphNetwork(SpecifiedNetwork):
    """A multi-exit network whose frozen part is a model's graphs; stands where a `MultiExitNetwork` stands on a device.

    Args:
        folder: of the model; a stage's graph is read when it first runs.
        spec: of the network.
        graphs: what `network.json` says of them.
        exits: the global exits' weights.
        fingerprint: of the model.
        backbone_fingerprint: of its backbone.
        calibration: of its exits, if it carries one.
        risk_pools: of users who trained nothing, by name, if it carries any.
        threads: of a stage, 0 for one for each core.
        providers: ONNX Runtime's, the first that can run an operator runs it.
    """

    def __init__(
        self,
        folder: Path,
        spec: NetworkSpec,
        graphs: ModelGraphs,
        exits: ExitWeights,
        *,
        fingerprint: str,
        backbone_fingerprint: str,
        calibration: ExitCalibration | None = None,
        risk_pools: Mapping[str, Any] | None = None,
        threads: int = 0,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        self.spec = spec
        self.graphs = graphs
        self.costs = graphs.costs
        self.calibration = calibration
        self.risk_pools = dict(risk_pools or {})
        self.fingerprint = fingerprint
        self.backbone_fingerprint = backbone_fingerprint
        self.graphs_fingerprint = graphs.fingerprint(fingerprint)
        self._folder, self._threads, self._providers = folder, threads, providers
        self._exits = exits
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}
        self._only_what_is_asked = onnxruntime.RunOptions()
        self._only_what_is_asked.only_execute_path_to_fetches = True

    @property
    def threads(self) -> int:
        """How many threads an operator of a graph uses."""
        return self._threads or os.cpu_count() or 1

    def freeze_backbone(self) -> Self:
        """Return itself: a graph never learns."""
        return self

    def exit_state(self) -> ExitWeights:
        """Return copies of all arrays of the exit heads."""
        return {name: value.copy() for name, value in self._exits.items()}

    def load_exit_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Load arrays that `exit_state` returned; what is no classifier's has to be the graphs' own.

        Raises:
            ModelFileError: an array is missing, unknown or of another shape, or belongs to a convolution that was
                trained, as by the paper's schedule.
        """
        self.require_fit(state)
        self._exits = {name: np.asarray(value) for name, value in state.items()}

    def require_fit(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Refuse exits' weights that are not these exits' with other classifiers.

        Raises:
            ModelFileError: as `load_exit_state`.
        """
        own = self._exits
        learned = {name for exit in range(self.num_exits) for name in classifier_names(own, exit)}
        require_fit(own, state)
        trained = [name for name in own.keys() - learned if not np.array_equal(own[name], state[name])]
        if trained:
            raise ModelFileError(
                f"the exits' convolutions were trained ({min(trained)}), as the paper's schedule does, and the model's "
                "graphs hold the global ones: take these exits up where PyTorch is installed, or begin another store."
            )

    def embed(self, images: NDArray[np.uint8]) -> Embedded:
        """Return what the classifiers take, and the last exit's logits, of images uint8 [N, C, H, W].

        Raises:
            ModelFileError: a graph is missing, damaged, or refused.
        """
        count, size = len(images), max(1, PIXELS_AT_ONCE // self.spec.input_size**2)
        exits = tuple(np.empty((count, stage.width), dtype=np.float32) for stage in self.graphs.stages[:-1])
        last_logits = np.empty((count, self.num_classes), dtype=np.float32)
        for first in range(0, count, size):
            piece = slice(first, min(first + size, count))
            features: Floats = images[piece].astype(np.float32) / np.float32(255)
            for number, rows in enumerate(exits):
                features, rows[piece] = self.run_stage(number, features)
            last_logits[piece] = self.run_last(features)
        return Embedded(exits=exits, last_logits=last_logits)

    def run_stage(self, number: int, features: Floats) -> tuple[Floats, Floats]:
        """Run a stage but the last on images in [0, 1] or features; return its features and its exit's embedding."""
        found: list[Floats] = run_session(self._session(number), [FEATURES, EMBEDDING], {INPUT: features})
        return found[0], found[1]

    def pass_stage(self, number: int, features: Floats) -> Floats:
        """Run a stage but the last without its exit; return its features."""
        found: list[Floats] = run_session(
            self._session(number), [FEATURES], {INPUT: features}, self._only_what_is_asked
        )
        return found[0]

    def run_last(self, features: Floats) -> Floats:
        """Run the last stage; return its logits."""
        found: list[Floats] = run_session(self._session(self.num_exits), [LOGITS], {INPUT: features})
        return found[0]

    def stage_graph(self, number: int) -> bytes:
        """Return a stage's graph, checked.

        Raises:
            ModelFileError: it is missing, damaged, or refused.
        """
        return self.graphs.stages[number].read(self._folder)

    def _session(self, number: int) -> onnxruntime.InferenceSession:
        if number not in self._sessions:
            stage = self.graphs.stages[number]
            session = open_session(self.stage_graph(number), threads=self._threads, providers=self._providers)
            shape = self.graphs.stages[number - 1].shape if number else self.input_shape
            is_last = number == self.num_exits
            outputs = (
                [(LOGITS, [self.num_classes])] if is_last else [(FEATURES, [*stage.shape]), (EMBEDDING, [stage.width])]
            )
            expected = [(name, "tensor(float)", sizes) for name, sizes in [(INPUT, [*shape]), *outputs]]
            ports = (*session.get_inputs(), *session.get_outputs())
            found = [(port.name, port.type, port.shape[1:]) for port in ports]
            # a number of images that stands in the graph would be the only one that it takes
            if found != expected or any(isinstance(port.shape[0], int) for port in ports):
                raise ModelFileError(f"{self._folder / stage.file} is of another network: write the graphs again.")
            self._sessions[number] = session
        return self._sessions[number]


def load_graph_network(
    folder: Path,
    *,
    threads: int = 0,
    providers: tuple[str, ...] = ("CPUExecutionProvider",),
    kind: GraphKind = "float32",
) -> tuple[GraphNetwork, ModelMetadata]:
    """Return the network in `folder` as it runs without PyTorch, and what is known of it.

    Args:
        folder: of the model.
        threads: of a stage, 0 for one for each core.
        providers: ONNX Runtime's, the first that can run an operator runs it.
        kind: which of the model's graphs. int8 graphs are a backbone of their own: exits that were made on them are of
            no use on the others, and what held-out users lost on the others promises nothing on them.

    Raises:
        ModelFileError: the folder is missing or cut off, carries no graphs, or does not match its description.
    """
    description = read_description(folder)
    spec, metadata = read_spec(folder, description)
    if "graphs" not in description:
        raise ModelFileError(
            f"{folder} carries no graphs, and without them it needs PyTorch: write them once with "
            f"`persephonee export --model {folder}` where PyTorch is installed, or pip install 'persephonee[train]'."
        )
    graphs = ModelGraphs.from_dict(description["graphs"], spec.num_exits)
    if kind == "int8":
        graphs = _int8_of(folder, description, spec.num_exits)
    weights = _exit_weights(folder / description["weights"], spec, description)
    _require_heads_of(graphs, spec, weights)
    if metadata.calibration is not None:
        metadata.calibration.require_fit(spec.num_exits, spec.num_classes)
    fingerprint, backbone = str(description["fingerprint"]), description["backbone_fingerprint"]
    network = GraphNetwork(
        folder,
        spec,
        graphs,
        weights,
        fingerprint=fingerprint,
        backbone_fingerprint=graphs.fingerprint(fingerprint) if kind == "int8" else str(backbone),
        calibration=metadata.calibration,
        risk_pools={} if kind == "int8" else metadata.risk_pools,
        threads=threads,
        providers=providers,
    )
    return network, metadata


def _int8_of(folder: Path, description: Mapping[str, Any], num_exits: int) -> ModelGraphs:
    graphs = int8_graphs(description["graphs"], num_exits)
    if graphs is None:
        raise ModelFileError(
            f"{folder} carries no int8 graphs: write them once with `persephonee export --model {folder} --int8` and "
            "users who are no devices, or take --graphs float32."
        )
    return graphs


def carries_graphs(folder: Path) -> bool:
    """Return whether the model in a folder can run without PyTorch.

    Raises:
        ModelFileError: the folder is no model folder.
    """
    return "graphs" in read_description(folder)


def _exit_weights(path: Path, spec: NetworkSpec, description: Mapping[str, Any]) -> ExitWeights:
    """Return the heads' arrays, after comparing all arrays of the file with the fingerprints."""
    heads: ExitWeights = {}
    whole, backbone = Fingerprint(spec), Fingerprint(spec)
    try:
        if not path.is_file():
            raise OSError("it is no regular file")
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in sorted(file.keys()):
                array = file.get_tensor(name)
                whole.add(name, array)
                if name.startswith(STAGES):
                    backbone.add(name.removeprefix(STAGES), array)
                elif name.startswith(HEADS):
                    heads[name] = array
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{path} is missing or cut off ({error}): copy or save the model again.") from None
    if (whole.hexdigest(), backbone.hexdigest()) != (description["fingerprint"], description["backbone_fingerprint"]):
        raise ModelFileError(
            f"the weights in {path.parent} are not those that network.json describes: copy the whole folder again."
        )
    return {name: heads[name] for name in in_order(heads)}


def _require_heads_of(graphs: ModelGraphs, spec: NetworkSpec, weights: ExitWeights) -> None:
    if {name.split(".")[1] for name in weights} != set(map(str, range(spec.num_exits))):
        raise ModelFileError(f"the weights are of other exits than 0 to {spec.num_exits - 1}: save the model again.")
    odd = next((name for name, array in weights.items() if not np.isfinite(array).all()), None)
    if odd is not None:
        raise ModelFileError(
            f"tensor {odd[:80]!r} holds a number that is not finite: copy the model again, or train it."
        )
    for exit, stage in enumerate(graphs.stages[:-1]):
        weight = weights[classifier_names(weights, exit)[0]]
        if weight.shape != (spec.num_classes, stage.width) or weight.dtype != np.float32:
            raise ModelFileError(
                f"the graph of exit {exit} does not fit its classifier {weight.dtype} {weight.shape}: write the graphs "
                "again."
            )
