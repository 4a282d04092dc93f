import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.checked_json import with_digest
from persephonee.multi_exit.errors import BackboneError, ModelFileError, MultiExitError
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network

MODULE = "own_backbones_of_the_tests"
METADATA = ModelMetadata(
    dataset="made-up",
    trained_on=("w1", "w2"),
    class_names=tuple("0123456789"),
    history=({"epoch": 0, "loss": 2.5}, {"epoch": 1, "loss": 1.25}),
    settings={"epochs": 2},
    calibration=ExitCalibration(
        temperatures=(1.5, 2.0, 0.5), biases=((0.25,) + (0.0,) * 9,) * 3, frequencies=(0.1,) * 10
    ),
)


def edit_description(folder: Path, **changes: object) -> None:
    """Change network.json as somebody would who makes its digest anew."""
    path = folder / "network.json"
    values = {**json.loads(path.read_text()), **changes}
    del values["sha256"]
    path.write_text(json.dumps(with_digest(values)))


def edit_spec(folder: Path, **changes: object) -> None:
    edit_description(folder, spec={**json.loads((folder / "network.json").read_text())["spec"], **changes})


class LateShortcut(nn.Module):
    """Needs maps of 33 px or more, and changes in place what its shortcut adds."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(33, stride=1)
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, images):
        first = self.first(images)
        shortcut = self.second(self.relu(first)) + first
        return self.classifier(self.pool(self.second(shortcut)).mean((2, 3)))


def test_a_network_that_was_asked_to_keep_the_resolution_answers_the_same_when_it_is_loaded(build_own, tmp_path):
    network = build_own(LateShortcut, num_exits=1, head="pooled", in_channels=1, stem="stride-1")
    assert network.spec.stem == "stride-1"
    save_network(network, tmp_path, ModelMetadata())
    loaded, _ = load_network(tmp_path, allowed=(MODULE,))
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(network.eval()(images), loaded.eval()(images), strict=True):
            assert torch.equal(ours, theirs)


@pytest.fixture
def folder(tiny_network, tmp_path) -> Path:
    save_network(tiny_network, tmp_path / "model", METADATA)
    return tmp_path / "model"


@pytest.fixture
def refusal(folder, one_sentence):
    """Return a function that loads the folder, expects a refusal in one sentence, and returns the sentence."""

    def load(error: type[MultiExitError] = ModelFileError, allowed: tuple[str, ...] = (MODULE,)) -> str:
        with pytest.raises(error) as caught:
            load_network(folder, allowed=allowed)
        return one_sentence(caught)

    return load


def test_a_saved_network_comes_back_bit_by_bit(tiny_network, tmp_path):
    fingerprint = save_network(tiny_network, tmp_path, METADATA)
    loaded, metadata = load_network(tmp_path, allowed=(MODULE,))
    assert metadata == METADATA
    assert loaded.fingerprint == fingerprint == tiny_network.fingerprint
    assert loaded.calibration == METADATA.calibration
    assert loaded.spec == tiny_network.spec
    assert loaded.costs == tiny_network.costs
    assert not loaded.training
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        for got, expected in zip(loaded(images), tiny_network(images), strict=True):
            assert torch.equal(got, expected)


def test_a_model_of_before_there_was_a_calibration_is_loaded_without_one(folder):
    metadata = json.loads((folder / "network.json").read_text())["metadata"]
    del metadata["calibration"]
    edit_description(folder, metadata=metadata)
    network, known = load_network(folder, allowed=(MODULE,))
    assert network.calibration is None
    assert known == replace(METADATA, calibration=None)


def test_a_calibration_that_does_not_fit_is_refused(folder, refusal):
    metadata = json.loads((folder / "network.json").read_text())["metadata"]
    metadata["calibration"]["temperatures"] = metadata["calibration"]["temperatures"][1:]
    edit_description(folder, metadata=metadata)
    assert "different lengths" in refusal()
    metadata["calibration"]["biases"] = metadata["calibration"]["biases"][1:]
    edit_description(folder, metadata=metadata)
    assert "2 exits and 10 classes, expected 3 and 10" in refusal()


@pytest.mark.parametrize("head", ["msdnet", "pooled"])
def test_a_torchvision_network_with_a_small_stem_and_normalisation_comes_back(tmp_path, head):
    network = build_network(
        "mobilenet_v3_small", num_exits=3, num_classes=7, in_channels=1, head=head, mean=(0.5,), std=(0.25,), seed=4
    )
    save_network(network, tmp_path, ModelMetadata())
    loaded, metadata = load_network(tmp_path)
    assert metadata == ModelMetadata()
    assert loaded.fingerprint == network.fingerprint
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(images)[-1], network(images)[-1])


def test_a_module_that_serves_in_two_stages_comes_back(build_own, tmp_path):
    class Recurrent(nn.Module):
        def __init__(self, num_classes: int, in_channels: int) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(in_channels, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.classifier = nn.Linear(4, num_classes)

        def forward(self, images):
            features = self.first(images).relu()
            for _ in range(3):
                features = self.again(features).relu()
            return self.classifier(features.mean((2, 3)))

    network = build_own(Recurrent)
    save_network(network, tmp_path, ModelMetadata())
    assert load_network(tmp_path, allowed=(MODULE,))[0].fingerprint == network.fingerprint


def test_a_folder_holds_one_description_and_one_weights_file(tiny_network, folder):
    first = {path.name for path in folder.iterdir()}
    assert first == {"network.json", f"weights-{tiny_network.fingerprint[:12]}.safetensors"}
    with torch.no_grad():
        next(tiny_network.parameters()).add_(1)
    save_network(tiny_network, folder, METADATA)
    second = {path.name for path in folder.iterdir()}
    assert len(second) == 2
    assert second != first


@pytest.mark.parametrize("broken_file", ["weights", "network.json"])
def test_the_old_model_stays_when_the_disk_is_full(tiny_network, folder, monkeypatch, broken_file):
    old = tiny_network.fingerprint
    with torch.no_grad():
        next(tiny_network.parameters()).add_(1)
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name.startswith(broken_file):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_network(tiny_network, folder, METADATA)
    assert load_network(folder, allowed=(MODULE,))[0].fingerprint == old


@pytest.mark.parametrize("kept", [0, 7, 200, -1])
def test_a_cut_off_weights_file_is_refused(folder, refusal, kept):
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:kept])
    assert weights.name in refusal()


def test_a_missing_weights_file_is_refused(folder, refusal):
    weights = next(folder.glob("*.safetensors"))
    weights.unlink()
    assert weights.name in refusal()


def test_weights_that_were_exchanged_are_refused(folder, refusal):
    weights = next(folder.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(weights)
    name = sorted(tensors)[0]
    safetensors.torch.save_file({**tensors, name: tensors[name] + 1}, weights)
    assert "not those that network.json describes" in refusal()


def test_a_damaged_description_is_refused(folder, refusal):
    path = folder / "network.json"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff\xfe", b"[]", b"3", b"null", b'{"format": 1}'):
        path.write_bytes(damaged)
        assert "network.json" in refusal()


def test_a_folder_that_is_no_model_is_refused(tmp_path, one_sentence):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelFileError) as caught:
            load_network(folder)
        assert "network.json" in one_sentence(caught)


def test_another_format_is_refused(folder, refusal):
    edit_description(folder, format=2)
    assert "format 2" in refusal()


@pytest.mark.parametrize("weights", ["../elsewhere.safetensors", "/etc/passwd", "", 3, None])
def test_weights_outside_the_folder_are_refused(folder, refusal, weights):
    edit_description(folder, weights=weights)
    refusal()


@pytest.mark.parametrize("metadata", [None, [], "text", {}, {**asdict(METADATA), "more": 1}])
def test_damaged_metadata_are_refused(folder, refusal, metadata):
    edit_description(folder, metadata=metadata)
    refusal()


@pytest.mark.parametrize("spec", [None, [], "text", {}, 3])
def test_a_damaged_specification_is_refused(folder, refusal, spec):
    edit_description(folder, spec=spec)
    refusal()


def test_weights_of_another_architecture_are_refused(folder, refusal):
    network = build_network("squeezenet1_1", num_exits=2, num_classes=10)
    weights = next(folder.glob("*.safetensors"))
    safetensors.torch.save_file(network.state_dict(), weights)
    assert "another architecture" in refusal()


def test_a_description_of_another_architecture_is_refused(folder, refusal):
    edit_spec(folder, backbone="resnet18")
    refusal(ModelFileError, allowed=("torchvision",))


@pytest.mark.parametrize("num_classes", [9, 11, 1, -3])
def test_another_number_of_classes_is_refused(folder, refusal, num_classes):
    edit_spec(folder, num_classes=num_classes)
    refusal(MultiExitError)


@pytest.mark.parametrize("changes", [{"in_channels": 3}, {"head": "pooled"}, {"stem": "stride-9"}, {"input_size": 80}])
def test_any_other_change_of_the_specification_is_refused(folder, refusal, changes):
    edit_spec(folder, **changes)
    refusal(MultiExitError)


def test_a_place_that_the_installed_version_does_not_have_is_refused(folder, refusal):
    edit_spec(folder, cuts=["activation", "renamed"])
    assert "'renamed'" in refusal()


def test_a_source_that_this_machine_does_not_allow_is_refused(refusal):
    assert MODULE in refusal(BackboneError, allowed=("torchvision", "timm"))


@pytest.mark.parametrize("cuts", [[], ["activation", "activation"], ["activation_1", "activation"]])
def test_exits_that_are_none_or_twice_or_reversed_are_refused(folder, refusal, cuts):
    assert sorted(cuts) != json.loads((folder / "network.json").read_text())["spec"]["cuts"] or cuts != sorted(cuts)
    edit_spec(folder, cuts=cuts)
    refusal()


@pytest.mark.parametrize("names", [[["0"]] * 10, [{"0": 1}] * 10, list(range(10)), ["0"] * 9, ["0"] * 11])
def test_class_names_that_are_nested_or_of_another_number_are_refused(folder, refusal, names):
    edit_description(folder, metadata={**json.loads(json.dumps(asdict(METADATA))), "class_names": names})
    assert "metadata" in refusal()


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "1" + 400 * "0", "1" + 5000 * "0"])
def test_a_number_that_no_float_holds_is_refused(folder, refusal, number):
    path = folder / "network.json"
    path.write_text(path.read_text().replace("2.5", number))
    assert "network.json" in refusal()


def test_brackets_without_end_are_refused(folder, refusal):
    (folder / "network.json").write_text('{"format": ' + 100_000 * "[")
    assert "nested" in refusal()


def test_who_trained_the_model_is_not_changed_unseen(folder, refusal):
    path = folder / "network.json"
    path.write_text(path.read_text().replace('"w1"', '"w9"'))
    assert "sha256" in refusal()


def test_a_model_of_an_earlier_version_has_no_digest_and_is_read(folder):
    path = folder / "network.json"
    values = json.loads(path.read_text())
    del values["sha256"]
    path.write_text(json.dumps(values))
    assert load_network(folder, allowed=(MODULE,))[1] == METADATA


@pytest.mark.parametrize("name", ["network.json", "weights"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder, refusal, name):
    path = next(path for path in folder.iterdir() if path.name.startswith(name))
    path.unlink()
    os.mkfifo(path)
    assert path.name in refusal()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tiny_network, tmp_path, one_sentence, value):
    with torch.no_grad():
        next(tiny_network.parameters()).view(-1)[3] = value
    save_network(tiny_network, tmp_path, METADATA)
    with pytest.raises(ModelFileError) as caught:
        load_network(tmp_path, allowed=(MODULE,))
    assert "not finite" in one_sentence(caught)


def test_a_file_of_the_users_own_is_not_taken_for_old_weights(tiny_network, folder):
    (folder / "weights-of-mine.safetensors").write_bytes(b"precious")
    save_network(tiny_network, folder, METADATA)
    assert (folder / "weights-of-mine.safetensors").read_bytes() == b"precious"
