import hashlib
import json
import os

import pytest

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import BackboneNotAllowedError, ModelFileError
from persephonee.multi_exit.graphs.description import ModelGraphs, StageGraph
from persephonee.multi_exit.repository.exchange import RepositoryError, pull_model, push_model
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from tests.tiny_cnn import NAME, SIDE, SOURCE

SOURCES = (SOURCE,)


@pytest.fixture
def model(tmp_path):
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=SOURCES)
    save_network(network, tmp_path / "model", ModelMetadata(dataset="parquet"))
    (tmp_path / "model" / "README.md").write_text("# mine\n")
    return tmp_path / "model"


@pytest.fixture
def clone(tmp_path):
    """What a clone of a new repository holds."""
    folder = tmp_path / "clone"
    (folder / ".git").mkdir(parents=True)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_model_goes_to_a_clone_and_comes_back_byte_for_byte(model, clone, tmp_path):
    push_model(model, str(clone), SOURCES)
    (clone / "pytorch_model.bin").write_bytes(b"pickled")
    pull_model(str(clone), tmp_path / "pulled", SOURCES)
    assert content(tmp_path / "pulled") == content(model)
    assert load_network(tmp_path / "pulled", SOURCES)[0].fingerprint == load_network(model, SOURCES)[0].fingerprint
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".pull")]


def test_a_second_push_replaces_the_model_and_leaves_no_old_weights(model, clone):
    push_model(model, str(clone), SOURCES)
    network, metadata = load_network(model, SOURCES)
    with_other_seed = build_network(
        NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=SOURCES, seed=1
    )
    save_network(with_other_seed, model, metadata)
    push_model(model, str(clone), SOURCES)
    assert len(list(clone.glob("*.safetensors"))) == 1
    assert load_network(clone, SOURCES)[0].fingerprint == with_other_seed.fingerprint != network.fingerprint


def test_what_was_changed_on_the_way_does_not_arrive(model, tmp_path):
    weights = next(model.glob("*.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ModelFileError, match="not those that network"):
        pull_model(str(model), tmp_path / "pulled", SOURCES)
    assert not (tmp_path / "pulled").exists()


def test_a_network_of_a_source_that_is_not_allowed_here_does_not_arrive(model, tmp_path):
    with pytest.raises(BackboneNotAllowedError):
        pull_model(str(model), tmp_path / "pulled", ("torchvision",))
    assert not (tmp_path / "pulled").exists()


def describe(model, **changed):
    values = json.loads((model / "network.json").read_text())
    del values["sha256"]
    (model / "network.json").write_text(json.dumps({**values, **changed}))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "weights.bin", "network.json", ["a"]])
def test_a_description_that_names_other_files_than_a_models_is_refused(model, tmp_path, name):
    describe(model, weights=name)
    with pytest.raises(ModelFileError):
        pull_model(str(model), tmp_path / "pulled", SOURCES)


@pytest.mark.parametrize(("lies", "reason"), [(False, "damaged"), (True, "is not the graph that")])
def test_a_graph_that_is_none_or_another_does_not_arrive(model, tmp_path, lies, reason):
    network, _ = load_network(model, SOURCES)
    graph = b"no protobuf"
    digest = hashlib.sha256(b"another" if lies else graph).hexdigest()
    stages = []
    for number in range(3):
        name = f"graph-{number}-{digest[:12]}.onnx"
        (model / name).write_bytes(graph)
        shape, width = ((4, 3, 3), 8) if number < 2 else ((), 0)
        stages.append(StageGraph(file=name, sha256=digest, shape=shape, width=width))
    describe(model, graphs=ModelGraphs(stages=tuple(stages), costs=network.costs).to_dict())
    with pytest.raises(ModelFileError, match=reason):
        pull_model(str(model), tmp_path / "pulled", SOURCES)
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_in_place_of_the_weights_is_refused(model, tmp_path, kind):
    weights = next(model.glob("*.safetensors"))
    weights.rename(tmp_path / "elsewhere")
    if kind == "link":
        weights.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(weights)
    with pytest.raises(RepositoryError, match=r"is a link|no regular file"):
        pull_model(str(model), tmp_path / "pulled", SOURCES)


def test_a_folder_with_something_else_is_left_alone(model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(RepositoryError, match=r"cat\.png, which is of no model"):
        push_model(model, str(tmp_path / "photos"), SOURCES)
    with pytest.raises(RepositoryError, match="not empty"):
        pull_model(str(model), tmp_path / "photos", SOURCES)


@pytest.mark.parametrize("address", ["hf://", "hf://name", "hf://a/b/c", "hf://../x y"])
def test_an_address_that_is_no_repository_is_refused_before_the_network_is_asked(model, tmp_path, address):
    with pytest.raises(RepositoryError, match="is no repository"):
        pull_model(address, tmp_path / "pulled", SOURCES)


def test_the_hub_receives_the_models_own_files_and_no_others(model, monkeypatch):
    calls = {}
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda _, name, **options: calls.update(repo=name))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda _, **options: calls.update(options))
    (model / "notes.txt").write_text("private")
    push_model(model, "hf://owner/name", SOURCES)
    assert calls["repo_id"] == calls["repo"] == "owner/name"
    weights = next(model.glob("*.safetensors")).name
    assert sorted(calls["allow_patterns"]) == sorted([weights, "network.json", "README.md"])


def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(RepositoryError, match=r"hf://owner/name cannot be used \(ConnectionError: no route\)"):
        pull_model("hf://owner/name", tmp_path / "pulled", SOURCES)
