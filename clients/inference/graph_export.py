"""The graphs of a personal network, made of those that a model carries: without PyTorch, with the package onnx (3.2).

A step's stages become one graph, with the exit's classifier behind its embedding, or with the shift of the user's class
frequencies behind the last exit's logits.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

from persephonee.clients.errors import ExportError
from persephonee.clients.inference.engine import merged_stages
from persephonee.clients.inference.exported_network import StepGraphs
from persephonee.clients.personalisation.exit_store import StoredExits
from persephonee.multi_exit.exit_weights import classifier_names
from persephonee.multi_exit.graphs.description import EMBEDDING, FEATURES, INPUT, LOGITS
from persephonee.multi_exit.graphs.network import GraphNetwork

_EXIT = "exit."
"""Begins the names of what is added; the names of PyTorch's modules and values begin otherwise."""


def step_graphs(network: GraphNetwork, stored: StoredExits) -> Iterator[StepGraphs]:
    """Yield the graph of each step, which holds the stage and its head.

    Args:
        network: the global model; left as it is.
        stored: the personal exits and the policy in force.

    Raises:
        ExportError: the graphs cannot be put together.
        ModelFileError: a graph is missing, or the exits do not fit the model's graphs.
    """
    network.require_fit(stored.exit_weights)
    for span in merged_stages(stored.policy):
        exit = span[-1]
        is_last = exit == network.num_exits
        try:
            model, names = _joined(network, span, (LOGITS,) if is_last else (FEATURES, EMBEDDING))
            if is_last:
                _add_shift(model, names[0], stored)
            else:
                _add_classifier(model, names, exit, stored, network.num_classes)
            onnx.checker.check_model(model)
        except (ValueError, onnx.checker.ValidationError) as error:
            raise ExportError(
                f"the graphs up to exit {exit} cannot be put together ({str(error).splitlines()[0]}): export where "
                "PyTorch is installed."
            ) from None
        yield StepGraphs(exit=exit, stage=bytes(model.SerializeToString(deterministic=True)), head=None)


def _joined(network: GraphNetwork, span: range, outputs: tuple[str, ...]) -> tuple[onnx.ModelProto, list[str]]:
    """Return consecutive stages as one graph, and what it calls the outputs of the last of them."""
    joined, names = onnx.load_model_from_string(network.stage_graph(span[0])), list(outputs)
    before = FEATURES
    for number in span[1:]:
        prefix = f"{number}."
        stage = compose.add_prefix(onnx.load_model_from_string(network.stage_graph(number)), prefix)
        names = [prefix + name for name in outputs]
        # what an exit between them takes is asked of nobody, and left out
        last = names if number == span[-1] else [prefix + FEATURES]
        joined = compose.merge_models(joined, stage, [(before, prefix + INPUT)], outputs=last)
        before = prefix + FEATURES
    return joined, names


def _add_classifier(model: onnx.ModelProto, names: list[str], exit: int, stored: StoredExits, num_classes: int) -> None:
    weights = [stored.exit_weights[name] for name in classifier_names(stored.exit_weights, exit)]
    added = [_EXIT + "weight", _EXIT + "bias"]
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for w, n in zip(weights, added, strict=True))
    features, embedding = names
    logits = _EXIT + LOGITS
    model.graph.node.append(helper.make_node("Gemm", [embedding, *added], [logits], transB=1))
    kept = next(output for output in model.graph.output if output.name == features)
    value = helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, ["batch", num_classes])
    del model.graph.output[:]
    model.graph.output.extend([kept, value])


def _add_shift(model: onnx.ModelProto, logits: str, stored: StoredExits) -> None:
    if stored.last_shift is None:
        return
    shift = np.asarray(stored.last_shift, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(shift, _EXIT + "shift"))
    model.graph.node.append(helper.make_node("Add", [logits, _EXIT + "shift"], [_EXIT + LOGITS]))
    model.graph.output[0].name = _EXIT + LOGITS
