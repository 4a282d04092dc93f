"""Quantise a model's graphs to 8-bit integers, beside the others: ONNX Runtime's static quantisation, without PyTorch.

Weights get a scale for each channel, and activations one for each tensor, from what they are on the images that are
given. Needs the package onnx.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.multi_exit.checked_json import write_with_digest
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.graphs.checking import check_graph
from persephonee.multi_exit.graphs.description import INPUT, INT8, ModelGraphs, all_stages, graph_file, graphs_in
from persephonee.multi_exit.graphs.network import Floats, load_graph_network
from persephonee.multi_exit.storage import read_description

_AT_ONCE = 8
"""Images in one run of the calibration."""


def write_int8_graphs(folder: Path, images: NDArray[np.uint8]) -> ModelGraphs:
    """Write int8 graphs beside those that the model in `folder` carries, and name them in its `network.json`.

    Args:
        folder: of the model.
        images: uint8 [N, C, H, W], of users who are no devices: the range of each activation on them decides its
            scale, and stays in the graphs.

    Raises:
        ModelFileError: the folder carries no graphs, or one cannot be quantised; the model stays as it was.
        OSError: the folder cannot be written.
    """
    network, _ = load_graph_network(folder, threads=1)
    description = read_description(folder)
    features: Floats = images.astype(np.float32) / np.float32(255)
    stages = []
    for number, stage in enumerate(network.graphs.stages):
        graph = _quantised(network.stage_graph(number), features, number)
        check_graph(graph)
        name = graph_file(number, graph)
        write_bytes_atomically(folder / name, graph)
        stages.append(replace(stage, file=name, sha256=hashlib.sha256(graph).hexdigest()))
        if number < network.num_exits:
            pieces = [network.pass_stage(number, features[part]) for part in _parts(len(features))]
            features = np.concatenate(pieces)
    graphs = ModelGraphs(stages=tuple(stages), costs=network.graphs.costs)
    described = {**description["graphs"], INT8: graphs.described(network.fingerprint)}
    write_with_digest(folder / "network.json", {**description, "graphs": described})
    for stale in graphs_in(folder) - {one.file for one in all_stages(described, network.num_exits)}:
        (folder / stale).unlink(missing_ok=True)
    return graphs


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """What a stage takes of the images, some at a time."""

    def __init__(self, features: Floats) -> None:
        self._batches: Iterator[Floats] = (features[part] for part in _parts(len(features)))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _parts(count: int) -> list[slice]:
    return [slice(first, first + _AT_ONCE) for first in range(0, count, _AT_ONCE)]


def _quantised(graph: bytes, features: Floats, number: int) -> bytes:
    # it advises to merge and to fold first, which has been done
    advice = logging.getLogger()
    before, advice.level = advice.level, logging.ERROR
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(graph)
            quantize_static(
                source,
                target,
                _Batches(features),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return target.read_bytes()
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ModelFileError(f"stage {number} cannot be quantised ({reason}): keep the graphs as they are.") from None
    finally:
        advice.level = before
