import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from persephonee.multi_exit.errors import ModelFileError, SettingsError
from persephonee.multi_exit.graphs.checking import check_graph
from persephonee.multi_exit.graphs.description import graphs_fingerprint, graphs_in
from persephonee.multi_exit.graphs.network import load_graph_network
from persephonee.multi_exit.graphs.quantising import write_int8_graphs
from persephonee.multi_exit.graphs.writing import write_graphs
from persephonee.multi_exit.repository.exchange import files_of
from persephonee.multi_exit.settings import RuntimeSettings
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.multi_exit.conftest import make_tiny_network

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 1, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def written_once(tmp_path_factory):
    """The tiny network with its graphs and int8 ones, which take seconds to write."""
    folder = tmp_path_factory.mktemp("int8") / "model"
    with pytest.MonkeyPatch.context() as patch:
        network = make_tiny_network(patch)
    network.risk_pools = {"x": {}}
    save_network(network, folder, ModelMetadata())
    write_graphs(network, folder)
    plain = shutil.copytree(folder, folder.with_name("plain"))
    write_int8_graphs(folder, IMAGES)
    return folder, plain


@pytest.fixture
def folder(written_once, tmp_path):
    return shutil.copytree(written_once[0], tmp_path / "model")


def test_int8_graphs_stand_beside_the_others_and_answer_nearly_as_these(folder, written_once):
    plain = written_once[1]
    assert graphs_in(plain) < graphs_in(folder)
    assert graphs_fingerprint(plain) == graphs_fingerprint(folder)
    exact, near = (load_graph_network(folder, threads=1, kind=kind)[0] for kind in ("float32", "int8"))
    expected, found = exact.embed(IMAGES), near.embed(IMAGES)
    outputs = zip((*found.exits, found.last_logits), (*expected.exits, expected.last_logits), strict=True)
    for array, wanted in outputs:
        # a step of 1/255 of the range in each of a few layers
        assert 0 < np.abs(array - wanted).max() < 0.1 * np.abs(wanted).max()


def test_int8_graphs_are_checked_as_all_graphs_are_and_their_weights_have_8_bits(folder):
    network, _ = load_graph_network(folder, kind="int8")
    for number in range(network.num_exits + 1):
        data = network.stage_graph(number)
        check_graph(data)
        weights = [one for one in onnx.load_model_from_string(data).graph.initializer if len(one.dims) == 4]
        assert weights and all(one.data_type == TensorProto.INT8 for one in weights)
    path = folder / network.graphs.stages[1].file
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelFileError, match="is not the graph"):
        load_graph_network(folder, kind="int8")[0].embed(IMAGES)


def test_int8_graphs_are_a_backbone_of_their_own_on_which_nothing_was_promised(folder):
    exact, near = (load_graph_network(folder, kind=kind)[0] for kind in ("float32", "int8"))
    assert exact.fingerprint == near.fingerprint
    assert (
        near.backbone_fingerprint
        == near.graphs_fingerprint
        not in (
            exact.backbone_fingerprint,
            exact.graphs_fingerprint,
        )
    )
    assert near.risk_pools == {}


def test_a_model_without_int8_graphs_says_how_to_write_them(written_once, one_sentence):
    with pytest.raises(ModelFileError, match=r"carries no int8 graphs.*--int8") as caught:
        load_graph_network(written_once[1], kind="int8")
    one_sentence(caught)
    for wrong in ({"graphs": "int4"}, {"graphs": "int8", "runtime": "torch"}):
        with pytest.raises(SettingsError, match="graphs="):
            RuntimeSettings(**wrong)


def test_int8_graphs_travel_with_the_model_and_go_with_the_weights_that_they_were_made_of(folder, tiny_network):
    near, _ = load_graph_network(folder, kind="int8")
    assert {stage.file for stage in near.graphs.stages} <= set(files_of(folder))
    write_graphs(tiny_network, folder)
    assert load_graph_network(folder, kind="int8")[0].graphs == near.graphs
    tiny_network.heads[0].classifier.bias.data.add_(1)
    save_network(tiny_network, folder, ModelMetadata())
    write_graphs(tiny_network, folder)
    assert not {stage.file for stage in near.graphs.stages} & graphs_in(folder)
