import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import TensorProto, helper
from torch import nn

from persephonee.multi_exit.checked_json import write_with_digest
from persephonee.multi_exit.errors import ModelFileError, SettingsError
from persephonee.multi_exit.graphs.checking import check_graph
from persephonee.multi_exit.graphs.description import EMBEDDING, FEATURES, INPUT, LOGITS, ModelGraphs, graph_file
from persephonee.multi_exit.graphs.network import load_graph_network
from persephonee.multi_exit.graphs.sessions import open_session, require_providers
from persephonee.multi_exit.graphs.writing import GraphError, to_onnx, write_graphs
from persephonee.multi_exit.settings import RuntimeSettings, fingerprint_of
from persephonee.multi_exit.storage import ModelMetadata, read_description, read_spec, save_network
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


class _Permuted(nn.Module):
    """What ends a ConvNeXt: maps whose channels come last in memory, and the mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pool, self.classifier = nn.LayerNorm(6), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, maps):
        maps = self.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.classifier(self.pool(maps).flatten(1))


def test_the_mean_over_permuted_maps_is_one_operator_for_any_batch():
    network, maps = _Permuted().eval(), torch.randn(5, 6, 4, 4)
    data = to_onnx(network, maps[:2], ("logits",))
    check_graph(data)
    operators = {node.op_type for node in onnx.load_model_from_string(data).graph.node}
    assert "ReduceMean" in operators and not operators & {"Range", "Gather"}
    (found,) = open_session(data, threads=1).run(None, {INPUT: maps.numpy()})
    np.testing.assert_allclose(found, network(maps).detach().numpy(), atol=1e-5)


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
        {**plainly, "costs": [{**c, "macs": 0} for c in plainly["costs"]]},
        {**plainly, "costs": [{**c, "head_macs": 2**54} for c in plainly["costs"]]},
        {**plainly, "costs": [{**c, "share": "0.5"} for c in plainly["costs"]]},
        {**plainly, "costs": [{**c, "at": {}} for c in plainly["costs"]]},
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


def described_anew(folder, **changes):
    write_with_digest(folder / "network.json", {**read_description(folder), **changes})


def with_arrays(folder, **arrays):
    """Write a model whose arrays are others, with the fingerprint that belongs to them."""
    description = read_description(folder)
    path = folder / description["weights"]
    changed = {**safetensors.numpy.load_file(path), **arrays}
    path.write_bytes(safetensors.numpy.save(changed))
    spec, _ = read_spec(folder, description)
    described_anew(folder, fingerprint=fingerprint_of(spec, sorted(changed.items())))


def with_graph(folder, stage, change):
    """Write a model one of whose graphs is another, with the digest that belongs to it."""
    described = read_description(folder)["graphs"]
    model = onnx.load(folder / described["stages"][stage]["file"])
    change(model)
    graph = model.SerializeToString()
    (folder / graph_file(stage, graph)).write_bytes(graph)
    described["stages"][stage].update(file=graph_file(stage, graph), sha256=hashlib.sha256(graph).hexdigest())
    described_anew(folder, graphs=described)


ONE = np.ones(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"heads.x.weight": ONE}, "other exits than 0 to 1"),
        ({"heads.7.weight": ONE}, "other exits than 0 to 1"),
        ({f"heads.0.{'9' * 5000}.weight": np.full(3, np.nan, dtype=np.float32)}, "not finite"),
        ({"heads.0.extra.weight": np.ones((10, 3), dtype=np.float32)}, "no linear classifier"),
    ],
)
def test_exits_of_a_stranger_that_are_not_the_networks_are_refused(written, arrays, reason):
    folder, _ = written
    with_arrays(folder, **arrays)
    with pytest.raises(ModelFileError, match=reason):
        load_graph_network(folder)


def fixed_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


def renamed_output(model):
    model.graph.node.append(helper.make_node("Identity", [FEATURES], ["other"]))
    model.graph.output[0].name = "other"


def another_type(model):
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Cast", ["before"], [LOGITS], to=TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def endless_padding(model):
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [4], [0, 0, 0, 2**50])
    begin, end = (
        helper.make_tensor(name, TensorProto.INT64, [2], ends) for name, ends in (("b", [0, 0]), ("e", [9, 10]))
    )
    model.graph.initializer.extend([sizes, begin, end])
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Pad", ["before", "sizes"], ["padded"]))
    model.graph.node.append(helper.make_node("Slice", ["padded", "b", "e"], [LOGITS]))


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        (0, fixed_batch, "is of another network"),
        (0, renamed_output, "is of another network"),
        (2, another_type, "is of another network"),
        (2, endless_padding, "fails when it is run"),
    ],
)
def test_a_graph_of_a_stranger_that_does_not_run_is_a_sentence(written, stage, change, reason, one_sentence):
    folder, _ = written
    with_graph(folder, stage, change)
    network, _ = load_graph_network(folder)
    with pytest.raises(ModelFileError, match=reason) as caught:
        network.embed(np.zeros((2, 1, 64, 64), dtype=np.uint8))
    one_sentence(caught)


@pytest.mark.parametrize("name", ["weights\0", "..", "weights.safetensors", ["a"]])
def test_weights_of_another_name_than_a_models_are_refused(written, name):
    folder, _ = written
    described_anew(folder, weights=name)
    with pytest.raises(ModelFileError, match="is damaged"):
        read_description(folder)


@pytest.mark.parametrize("change", [{"num_classes": 1}, {"in_channels": 2}, {"input_size": 0}])
def test_a_specification_with_an_impossible_number_is_refused(written, change):
    folder, _ = written
    described_anew(folder, spec={**read_description(folder)["spec"], **change})
    with pytest.raises(ModelFileError, match="out of its range"):
        load_graph_network(folder)
