import numpy as np
import pytest
import safetensors.numpy
import torch
from torch.nn import functional

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.experiments.data import weights
from persephonee.experiments.studies.imagenet_networks import NETWORKS, resnet50_v1
from tests.conftest import real_data


@pytest.fixture(scope="module")
def keras_layers() -> dict[str, dict[str, np.ndarray]]:
    """Keras' layers with the shapes of a ResNet-50 and random numbers, convolutions with a bias."""
    generator = np.random.default_rng(0)
    layers: dict[str, dict[str, np.ndarray]] = {}

    def convolution(name: str, norm: str, size: int, inputs: int, outputs: int) -> None:
        kernel = generator.standard_normal((size, size, inputs, outputs), dtype=np.float32)
        vectors = generator.standard_normal((5, outputs), dtype=np.float32)
        layers[name] = {"W": kernel, "b": vectors[0]}
        layers[norm] = {
            **{"gamma": vectors[1], "beta": vectors[2], "running_mean": vectors[3]},
            "running_std": np.abs(vectors[4]),
        }

    convolution("conv1", "bn_conv1", 7, 3, 64)
    inputs = 64
    for stage, letters in ((2, "abc"), (3, "abcd"), (4, "abcdef"), (5, "abc")):
        width = 32 * 2 ** (stage - 1)
        for letter in letters:
            name = f"{stage}{letter}_branch"
            sides = {"2a": (1, inputs, width), "2b": (3, width, width), "2c": (1, width, 4 * width)}
            if letter == "a":
                sides["1"] = (1, inputs, 4 * width)
            for part, (size, into, out) in sides.items():
                convolution(f"res{name}{part}", f"bn{name}{part}", size, into, out)
            inputs = 4 * width
    layers["fc1000"] = {
        "W": generator.standard_normal((2048, 1000), dtype=np.float32),
        "b": generator.standard_normal(1000, dtype=np.float32),
    }
    return layers


@pytest.fixture(scope="module")
def ported(keras_layers):
    return weights.port_resnet50(keras_layers)


def test_the_ported_tensors_are_those_of_torchvision_s_resnet50(ported):
    own = resnet50_v1(1000, 3).state_dict()
    assert ported.keys() == own.keys()
    assert {name: array.shape for name, array in ported.items()} == {name: tuple(t.shape) for name, t in own.items()}


def test_a_ported_convolution_and_its_normalisation_compute_what_keras_computes(keras_layers, ported):
    conv, norm = keras_layers["res3a_branch1"], keras_layers["bn3a_branch1"]
    image = np.random.default_rng(1).normal(size=(4, 256))
    theirs = image @ conv["W"][0, 0] + conv["b"]
    theirs = (theirs - norm["running_mean"]) / np.sqrt(norm["running_std"] + 1e-3) * norm["gamma"] + norm["beta"]
    network = resnet50_v1(1000, 3).eval()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in ported.items()})
    shortcut = network.layer2[0].downsample
    with torch.no_grad():
        ours = shortcut(torch.from_numpy(image).float()[:, :, None, None])[..., 0, 0].numpy()
    # float16 kernels
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def test_red_green_blue_enters_where_keras_takes_blue_green_red(keras_layers, ported):
    image = np.random.default_rng(2).normal(size=(9, 9, 3))
    theirs = np.einsum("hwc,hwco->o", image[1:8, 1:8, ::-1], keras_layers["conv1"]["W"])
    kernel = torch.from_numpy(ported["conv1.weight"].astype(np.float64))
    ours = functional.conv2d(torch.from_numpy(image.copy()).permute(2, 0, 1)[None], kernel)[0, :, 1, 1].numpy()
    assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


def test_the_classifier_is_turned_and_a_missing_layer_is_named(keras_layers, ported):
    assert np.array_equal(ported["fc.weight"], keras_layers["fc1000"]["W"].T.astype(np.float16))
    lacking = {name: layer for name, layer in keras_layers.items() if name != "bn4f_branch2b"}
    with pytest.raises(BrokenDataError, match="The layer bn4f_branch2b has no gamma"):
        weights.port_resnet50(lacking)


def test_the_ported_file_has_the_names_shapes_and_types_of_our_copy(ported):
    ours = safetensors.numpy.load_file(real_data("weights/resnet50_v1_fp16.safetensors"))
    assert {name: (array.shape, array.dtype) for name, array in ported.items()} == {
        name: (array.shape, array.dtype) for name, array in ours.items()
    }


def test_our_copy_of_mobilenet_has_the_checksum_in_its_name(capsys):
    path = real_data("weights/mobilenet_v2-b0353104.pth")
    file = weights.mobilenet_file()
    assert (file.name, file.checksum) == (NETWORKS["mobilenet_v2"].file, "sha256:b0353104")
    weights.Fetching(folder=path.parent).obtain(file)
    assert "the sha256 is the one that torchvision" in capsys.readouterr().out
    assert NETWORKS["resnet50"].file == weights.PORTED


def write_keras_file(path, layers, keras_2):
    h5py = pytest.importorskip("h5py")
    words = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.create_group("activation_1")
        for layer, arrays in layers.items():
            for name, array in arrays.items():
                place = f"{layer}/{layer}/{words.get(name, name)}:0" if keras_2 else f"{layer}/{layer}_{name}:0"
                file[place] = array


@pytest.mark.parametrize("keras_2", [False, True])
def test_a_file_of_keras_1_or_2_is_read_and_written_beside_mobilenet(keras_layers, tmp_path, monkeypatch, keras_2):
    # the first convolution and the classifier are enough
    monkeypatch.setattr(weights, "BLOCKS", {})
    few = {name: keras_layers[name] for name in ("conv1", "bn_conv1", "fc1000")}
    files = tmp_path / "files"
    files.mkdir()
    write_keras_file(files / weights.RESNET50.name, few, keras_2)
    (files / weights.mobilenet_file().name).write_bytes(b"tensors")
    weights.main(files=files, out=tmp_path / "out", any_files=True)
    written, expected = safetensors.numpy.load_file(tmp_path / "out" / weights.PORTED), weights.port_resnet50(few)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], array) for name, array in expected.items())
    assert (tmp_path / "out" / "mobilenet_v2-b0353104.pth").read_bytes() == b"tensors"


def test_a_file_that_is_no_hdf5_is_refused(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "file.h5").write_bytes(b"no HDF5")
    with pytest.raises(BrokenDataError, match=r"is no HDF5 file of weights .*: fetch it again\."):
        weights.read_keras(tmp_path / "file.h5")
