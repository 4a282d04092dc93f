import argparse
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import BackboneError, ModelFileError
from persephonee.multi_exit.weights import load_weights, read_weights


class RunsWhenUnpickled:
    """What a poisoned .pth file holds: unpickling it calls a function."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_weights_are_never_unpickled(tmp_path, one_sentence):
    path, trace_of_running = tmp_path / "weights.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"first.weight": RunsWhenUnpickled(str(trace_of_running))}))
    with pytest.raises(ModelFileError) as caught:
        read_weights(path)
    one_sentence(caught)
    torch.save({"first.weight": RunsWhenUnpickled(str(trace_of_running))}, path)
    with pytest.raises(ModelFileError) as caught:
        read_weights(path)
    one_sentence(caught)
    assert not trace_of_running.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_files_load_and_cut_off_ones_are_refused(tmp_path, suffix, build_own, tiny_cnn, one_sentence):
    path, state = tmp_path / f"weights{suffix}", tiny_cnn(10, 1).state_dict()
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network = build_own(tiny_cnn, weights=path, seed=9)
    assert torch.equal(network.stages[0].first.weight, state["first.weight"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelFileError) as caught:
        read_weights(path)
    assert str(path) in one_sentence(caught)


def test_weights_that_are_missing_or_no_tensors_are_refused(tmp_path, one_sentence):
    with pytest.raises(ModelFileError) as caught:
        read_weights(tmp_path / "nowhere.pth")
    one_sentence(caught)
    torch.save({"epoch": 3, "state": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ModelFileError) as caught:
        read_weights(tmp_path / "checkpoint.pth")
    assert "state_dict" in one_sentence(caught)


def test_weights_load_by_name(tiny_cnn):
    trained, model = tiny_cnn(7, 1), tiny_cnn(7, 1)
    load_weights(model, trained.state_dict(), "tiny")
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_number_of_classes_are_refused_in_one_sentence(tiny_cnn, one_sentence):
    with pytest.raises(BackboneError) as caught:
        load_weights(tiny_cnn(7, 1), tiny_cnn(10, 1).state_dict(), "tiny")
    assert "classifier.weight has the shape (7," in one_sentence(caught)


def test_weights_for_colours_answer_on_grey_as_on_three_equal_channels(tiny_cnn):
    trained, model = tiny_cnn(7, 3).eval(), tiny_cnn(7, 1).eval()
    load_weights(model, trained.state_dict(), "tiny")
    grey = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(grey), trained(grey.expand(-1, 3, -1, -1)))


def test_weights_of_another_architecture_are_refused_in_one_sentence(tiny_cnn, one_sentence):
    with pytest.raises(BackboneError) as caught:
        load_weights(tiny_cnn(7, 1), {"some.weight": torch.zeros(3)}, "tiny")
    assert "0 of 12 tensors" in one_sentence(caught)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_prefix_that_all_names_have_is_left_out(tiny_cnn, prefix):
    trained, model = tiny_cnn(7, 1), tiny_cnn(7, 1)
    assert not load_weights(model, {prefix + name: tensor for name, tensor in trained.state_dict().items()}, "tiny")
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_with_one_dictionary_of_tensors_is_taken_for_it(tiny_cnn, tmp_path):
    state = tiny_cnn(7, 1).state_dict()
    torch.save({"net": state, "epoch": 3, "accuracy": 0.5}, tmp_path / "checkpoint.pth")
    assert read_weights(tmp_path / "checkpoint.pth").keys() == state.keys()
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}}
    torch.save({"step": 7, "checkpoint": {"model": state, "optimizer": momentum}}, tmp_path / "deeper.ckpt")
    assert read_weights(tmp_path / "deeper.ckpt").keys() == state.keys()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"student": {"a": torch.ones(1)}, "teacher": {"a": torch.ones(1)}}, "student, teacher: save one of them"),
        ({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)}, "beside tensors it holds argparse.Names"),
        (nn.Conv2d(1, 1, 1), "beside tensors it holds torch.nn"),
        ({"epoch": 3}, "holds no dictionary of tensors"),
        (b"<!DOCTYPE html>", "none that torch.save wrote"),
    ],
)
def test_what_else_people_save_is_refused_with_what_to_do(content, said, tmp_path, one_sentence):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ModelFileError) as caught:
        read_weights(path)
    assert said in one_sentence(caught)


@pytest.mark.parametrize("name", ["gone.ckpt", "model_best.pth.tar", "gone.bin"])
def test_a_weights_file_that_is_not_there_is_no_published_name(name, one_sentence):
    with pytest.raises(ModelFileError) as caught:
        build_network("squeezenet1_1", num_exits=1, num_classes=10, weights=name)
    assert f"no weights file at {name}" in one_sentence(caught)


def test_published_weights_bring_their_normalisation_and_keep_a_classifier_of_as_many_classes(tmp_path, monkeypatch):
    from torchvision import models

    torch.manual_seed(2)
    published = models.squeezenet1_1(weights=None).eval()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published.state_dict(), tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = {"num_exits": 1, "input_size": 64, "in_channels": 3, "weights": "DEFAULT"}
    network = build_network("squeezenet1_1", num_classes=1000, **settings)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = published(models.SqueezeNet1_1_Weights.DEFAULT.transforms(crop_size=64, resize_size=64)(images))
        torch.testing.assert_close(network(images)[-1], expected)
    assert not network.classifier_is_new
    assert build_network("squeezenet1_1", num_classes=62, **settings).classifier_is_new
    grey = torch.rand(2, 1, 64, 64)
    on_grey = build_network("squeezenet1_1", num_classes=1000, **{**settings, "in_channels": 1})
    with torch.no_grad():
        torch.testing.assert_close(on_grey(grey)[-1], network(grey.expand(-1, 3, -1, -1))[-1])


@pytest.mark.parametrize(("backbone", "weights"), [("squeezenet1_1", "IMAGENET22K"), ("my_cnn:build", "DEFAULT")])
def test_weights_that_nobody_published_are_refused_in_one_sentence(backbone, weights, one_sentence):
    with pytest.raises(BackboneError) as caught:
        build_network(backbone, num_exits=1, num_classes=10, weights=weights)
    assert weights in one_sentence(caught)


def test_timm_s_weights_come_from_the_hub_s_file_with_their_normalisation(tmp_path, monkeypatch):
    timm, hub = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub")
    torch.manual_seed(4)
    published = timm.create_model("lcnet_050", num_classes=1000).eval()
    # what the hub keeps of a timm model: its tensors by name, as safetensors
    safetensors.torch.save_file(published.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def fetched(repository, name):
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", fetched)
    settings = {"num_exits": 1, "num_classes": 1000, "in_channels": 3, "input_size": 64}
    network = build_network("timm/lcnet_050", weights="DEFAULT", **settings)
    assert asked == [("timm/lcnet_050.ra2_in1k", "model.safetensors")]
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(timm.get_pretrained_cfg("lcnet_050").to_dict()[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], published((images - mean) / std))
    assert network.spec.stem == "original"
    build_network("timm/lcnet_050", weights="ra2_in1k", **settings)
    assert asked[1] == asked[0]
