"""Write a model's graphs beside its weights: the frozen backbone and the heads' frozen layers, BatchNorm folded.

Tracing happens here, once, with PyTorch; what was written is compared with PyTorch before it is kept.
"""

import copy
import hashlib
import importlib.util
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from persephonee.multi_exit.answers import probe_images
from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.multi_exit.checked_json import write_with_digest
from persephonee.multi_exit.errors import ModelFileError, MultiExitError
from persephonee.multi_exit.graphs.checking import check_graph
from persephonee.multi_exit.graphs.description import (
    EMBEDDING,
    FEATURES,
    INPUT,
    INT8,
    LOGITS,
    ModelGraphs,
    StageGraph,
    all_stages,
    graph_file,
    graphs_in,
)
from persephonee.multi_exit.graphs.sessions import open_session
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import read_description

TOLERANCE = 1e-4
"""By how much a graph may differ from PyTorch, as a fraction of the largest number that it returns, or of 1."""


class GraphError(MultiExitError):
    """A network has no ONNX counterpart, or one that answers otherwise."""


def write_graphs(network: MultiExitNetwork, folder: Path) -> ModelGraphs:
    """Write the graphs of the network that is saved in `folder`, and name them in its `network.json`.

    Raises:
        GraphError: an operator has no ONNX counterpart, or the graph does not answer as PyTorch does.
        ModelFileError: the folder holds another network.
        OSError: the folder cannot be written; the model that it held stays as it was.
    """
    description = read_description(folder)
    if description["fingerprint"] != network.fingerprint:
        raise ModelFileError(f"{folder} holds another network than the one whose graphs are to be written: save it.")
    made = _graphs_of(network)
    stages = []
    for number, graph in enumerate(made):
        name = graph_file(number, graph)
        write_bytes_atomically(folder / name, graph)
        is_last = number == network.num_exits
        stages.append(
            StageGraph(
                file=name,
                sha256=hashlib.sha256(graph).hexdigest(),
                shape=() if is_last else network.feature_shapes[number],
                width=0 if is_last else cast(nn.Linear, network.heads[number].classifier).in_features,
            )
        )
    graphs = ModelGraphs(stages=tuple(stages), costs=network.costs)
    described, before = graphs.described(network.fingerprint), description.get("graphs")
    if isinstance(before, dict) and INT8 in before and before.get("fingerprint") == described["fingerprint"]:
        # they were made of the very graphs that are written again
        described[INT8] = before[INT8]
    write_with_digest(folder / "network.json", {**description, "graphs": described})
    for stale in graphs_in(folder) - {one.file for one in all_stages(described, network.num_exits)}:
        (folder / stale).unlink(missing_ok=True)
    return graphs


def to_onnx(module: nn.Module, example: Tensor, outputs: tuple[str, ...]) -> bytes:
    """Return the ONNX graph of a module in eval() mode, with a free batch size and without a word about this machine.

    Args:
        module: takes one tensor.
        example: at least two samples: a batch of one would be taken for a constant.
        outputs: names of what it returns.

    Raises:
        GraphError: an operator has no ONNX counterpart, or a package is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise GraphError(f"the package {missing[0]} is missing: pip install 'persephonee[train]'")
    try:
        program = torch.onnx.export(
            with_exportable_pooling(module).eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            input_names=[INPUT],
            output_names=list(outputs),
            external_data=False,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise GraphError(f"it has no ONNX counterpart ({reason})") from None
    if program is None:
        raise GraphError("it has no ONNX counterpart")
    model = program.model_proto
    # the exporter writes where in whose files an operator was called
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        model.graph,
        model,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for node in model.graph.node:
        node.ClearField("name")
    return bytes(model.SerializeToString(deterministic=True))


class _Stage(nn.Module):
    """A stage and what its head does before the classifier; the last stage has no head."""

    def __init__(self, stage: nn.Module, embed: nn.Module | None) -> None:
        super().__init__()
        self.stage, self.embed = stage, embed

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.stage(images)
        return (features,) if self.embed is None else (features, self.embed(features))


class _Embedding(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        return self.head.embed(features)  # type: ignore[operator, no-any-return]


@torch.no_grad()
def _graphs_of(network: MultiExitNetwork) -> list[bytes]:
    network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    features = probe_images(network.input_shape)
    graphs = []
    for number, stage in enumerate(network.stages):
        is_last = number == network.num_exits
        embed = None if is_last else _Embedding(network.heads[number])
        expected = _Stage(stage, embed)(features)
        # folded and written is what answers as the network itself
        folded = _Stage(_folded(stage), None if is_last else _folded_head(network.heads[number]))
        outputs = (LOGITS,) if is_last else (FEATURES, EMBEDDING)
        try:
            graph = to_onnx(folded, features, outputs)
            check_graph(graph)
            _require_same(graph, features, dict(zip(outputs, expected, strict=True)))
        except (GraphError, ModelFileError) as error:
            raise GraphError(
                f"stage {number} of {network.spec.backbone} cannot be written as a graph: {str(error).rstrip('.')}."
            ) from None
        graphs.append(graph)
        features = expected[0]
    return graphs


def _folded(stage: nn.Module) -> nn.Module:
    return fuse(stage, no_trace=True) if isinstance(stage, fx.GraphModule) else copy.deepcopy(stage)


def _folded_head(head: nn.Module) -> nn.Module:
    if isinstance(head, nn.Sequential):
        return fuse(nn.Sequential(*list(head)[:-1]).eval())
    return _Embedding(head)


def _require_same(graph: bytes, images: Tensor, expected: dict[str, Tensor]) -> None:
    session = open_session(graph)
    for count in (len(images), 1):
        found = session.run(list(expected), {INPUT: images[:count].contiguous().numpy()})
        for name, array in zip(expected, found, strict=True):
            wanted = expected[name][:count].numpy()
            error = float(np.abs(array - wanted).max(initial=0.0))
            if array.shape != wanted.shape or not error <= TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0.0))):
                raise GraphError(f"its {name} differ from PyTorch's by {error:.2g}")


class _SlicedPool(nn.Module):
    """Adaptive pooling as maxima or means over slices: ONNX has none."""

    def __init__(self, pool: nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        size = cast(int | tuple[int, int], pool.output_size)
        self.size = size if isinstance(size, tuple) else (size, size)
        self.is_maximum = isinstance(pool, nn.AdaptiveMaxPool2d)

    def forward(self, features: Tensor) -> Tensor:
        """Return the pooled maps [B, C, size] of maps [B, C, H, W]."""
        if self.size == (1, 1):
            # PyTorch's own mean keeps the order of bytes that a permuted map has, as in ConvNeXt: for a free batch
            # size that would be a Range over the images, and a Gather
            return features.amax((-1, -2), keepdim=True) if self.is_maximum else features.mean((-1, -2), keepdim=True)
        for dim, size in ((2, self.size[0]), (3, self.size[1])):
            side = features.shape[dim]
            # PyTorch's own windows: from floor(i H / size) to ceil((i + 1) H / size)
            windows = [(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]
            slices = [features.narrow(dim, start, end - start) for start, end in windows]
            features = torch.stack([one.amax(dim) if self.is_maximum else one.mean(dim) for one in slices], dim)
        return features


def with_exportable_pooling(module: nn.Module) -> nn.Module:
    """Return a copy without the pooling that ONNX does not know, or that depends on the order of bytes."""
    module = copy.deepcopy(module)
    for path, child in list(module.named_modules()):
        if path and isinstance(child, nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool2d):
            module.set_submodule(path, _SlicedPool(child))
    return module
