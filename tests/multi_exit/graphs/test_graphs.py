import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from persephonee.multi_exit.errors import ModelFileError, SettingsError
from persephonee.multi_exit.graphs.checking import check_graph
from persephonee.multi_exit.graphs.description import EMBEDDING, FEATURES, INPUT, LOGITS, ModelGraphs
from persephonee.multi_exit.graphs.sessions import open_session, require_providers
from persephonee.multi_exit.graphs.writing import GraphError, write_graphs
from persephonee.multi_exit.settings import RuntimeSettings
from persephonee.multi_exit.storage import ModelMetadata, read_description, save_network
from tests.multi_exit.conftest import make_tiny_network


@pytest.fixture(scope="module")
def written_once(tmp_path_factory):
    """The tiny network with its graphs, which take seconds to write."""
    folder = tmp_path_factory.mktemp("graphs") / "model"
    with pytest.MonkeyPatch.context() as patch:
        network = make_tiny_network(patch)
        save_network(network, folder, ModelMetadata())
        return folder, write_graphs(network, folder)


ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def written(written_once, tmp_path):
    folder, graphs = written_once
    return shutil.copytree(folder, tmp_path / "model"), graphs


def test_the_graphs_answer_as_torch_for_any_batch_and_have_no_batch_norm_and_no_path(tiny_network, written):
    folder, graphs = written
    assert ModelGraphs.from_dict(read_description(folder)["graphs"], tiny_network.num_exits) == graphs
    images = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        maps, logits = tiny_network.features(images)
        embeddings = [head.embed(one) for head, one in zip(tiny_network.heads, maps, strict=True)]
    current = images.numpy()
    for number, stage in enumerate(graphs.stages):
        data = (folder / stage.file).read_bytes()
        check_graph(data)
        assert b"BatchNormalization" not in data and b"site-packages" not in data
        session, is_last = open_session(data, threads=1), number == tiny_network.num_exits
        names = [LOGITS] if is_last else [FEATURES, EMBEDDING]
        found = session.run(names, {INPUT: current})
        current = found[0]
        expected = [logits] if is_last else [maps[number], embeddings[number]]
        for array, tensor in zip(found, expected, strict=True):
            np.testing.assert_allclose(array, tensor.numpy(), atol=1e-4)
        assert stage.width == (0 if is_last else embeddings[number].shape[1])
    assert graphs.costs == tiny_network.costs


def test_saving_another_network_takes_the_graphs_away(tiny_network, written):
    folder, graphs = written
    with torch.no_grad():
        next(tiny_network.parameters()).mul_(2)
    with pytest.raises(ModelFileError, match="another network"):
        write_graphs(tiny_network, folder)
    save_network(tiny_network, folder, ModelMetadata())
    assert "graphs" not in read_description(folder)
    assert not [stage.file for stage in graphs.stages if (folder / stage.file).exists()]


def test_an_operator_without_a_counterpart_is_a_sentence_and_leaves_the_model_as_it_was(
    build_own, tiny_cnn, tmp_path, one_sentence, monkeypatch
):
    network = build_own(tiny_cnn)
    save_network(network, tmp_path, ModelMetadata())
    before = (tmp_path / "network.json").read_bytes()
    monkeypatch.setattr("persephonee.multi_exit.graphs.checking.OPERATORS", frozenset({"Relu"}))
    with pytest.raises(GraphError, match="stage 0") as caught:
        write_graphs(network, tmp_path)
    one_sentence(caught)
    assert (tmp_path / "network.json").read_bytes() == before


def graph_of(*nodes, initializers=(), functions=(), domain="") -> onnx.ModelProto:
    value = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(list(nodes), "g", [value], [out], initializer=list(initializers))
    return helper.make_model(graph, functions=functions, opset_imports=[helper.make_opsetid(domain, 18)])


def plain():
    return helper.make_node("Relu", [INPUT], ["out"])


def weight(**changes):
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4], np.ones(4, np.float32))
    for name, value in changes.items():
        setattr(tensor, name, value)
    return tensor


def external():
    tensor = weight(data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secret")
    return tensor


def huge():
    tensor = weight()
    tensor.dims[:] = [2**20, 2**20]
    return tensor


def branch():
    then = helper.make_graph([plain()], "then", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    return helper.make_node("If", ["c"], ["out"], then_branch=then, else_branch=then)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (graph_of(plain(), initializers=[external()]), "another file"),
        (graph_of(plain(), initializers=[huge()]), "too large"),
        (graph_of(branch()), "holds a graph"),
        (graph_of(helper.make_node("Loop", ["a"], ["out"])), "operator 'Loop'"),
        (graph_of(helper.make_node("Relu", [INPUT], ["out"], domain="com.stranger")), "com.stranger:Relu"),
        (graph_of(plain(), domain="com.stranger"), "com.stranger"),
        (graph_of(helper.make_node("MaxPool", [INPUT], ["out"], kernel_shape=[10**6, 1])), "kernel_shape"),
        (graph_of(helper.make_node("Constant", [], ["out"], value=external())), "another file"),
        (graph_of(), "0 operators"),
    ],
)
def test_a_strangers_graph_is_refused_before_it_is_loaded(graph, reason, one_sentence):
    with pytest.raises(ModelFileError, match=reason) as caught:
        check_graph(graph.SerializeToString())
    one_sentence(caught)


def test_a_plain_graph_passes_and_no_damage_of_it_raises_anything_but_a_refusal():
    data = graph_of(plain(), initializers=[weight()]).SerializeToString()
    check_graph(data)
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.integers(len(data))] = generator.integers(256)
        try:
            check_graph(bytes(damaged[: generator.integers(1, len(data) + 1)]))
        except ModelFileError:
            continue


def test_what_a_stranger_says_of_graphs_is_checked(written, tiny_network):
    folder, graphs = written
    plainly = json.loads(json.dumps(graphs.to_dict()))
    wrong = [
        {**plainly, "stages": plainly["stages"][1:]},
        {**plainly, "stages": [{**s, "file": "../x.onnx"} for s in plainly["stages"]]},
        {**plainly, "stages": [{**s, "width": -1} for s in plainly["stages"]]},
        {**plainly, "costs": [{**c, "macs": "1"} for c in plainly["costs"]]},
        {"costs": plainly["costs"]},
        [],
    ]
    for values in wrong:
        with pytest.raises(ModelFileError, match="graphs cannot be read"):
            ModelGraphs.from_dict(values, tiny_network.num_exits)
    shutil.rmtree(folder)


def test_a_provider_that_the_installed_build_lacks_is_named_with_those_that_it_has(one_sentence):
    settings = RuntimeSettings(providers="cpu, Vulkan")
    with pytest.raises(SettingsError, match=r"Vulkan is not in the installed build.*CPU") as caught:
        require_providers(settings.provider_names)
    one_sentence(caught)
    assert require_providers(RuntimeSettings(providers="cpu").provider_names) == ("CPUExecutionProvider",)
    for wrong in ({"runtime": "tflite"}, {"threads": -1}, {"providers": " , "}):
        with pytest.raises(SettingsError):
            RuntimeSettings(**wrong)


def test_onnx_runtime_tells_nobody_that_it_is_used(tmp_path):
    """Its telemetry begins with the import, and leaves a file of the session in the folder for temporary files."""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"TMPDIR": str(tmp_path)}
    code = "import persephonee.multi_exit.graphs.network"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
