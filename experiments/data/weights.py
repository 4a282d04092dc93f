"""ImageNet weights: torchvision's MobileNetV2 as it is, and Keras' ResNet-50 v1 with torchvision's names.

    python -m persephonee.experiments.data.weights --files downloads/weights --out data/weights --download

OUT gets mobilenet_v2-b0353104.pth and resnet50_v1_fp16.safetensors, the names under which
`persephonee.experiments.studies.imagenet_networks` looks for them. Reading Keras' file needs h5py:
`pip install "persephonee[data]"`.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.numpy
import typer
from numpy.typing import NDArray

from persephonee.commands.terminal import run_program
from persephonee.data_partitions.errors import BrokenDataError
from persephonee.experiments.data.hub_parquet import require_free
from persephonee.experiments.data.publisher_files import AnyFiles, Download, Fetching, Files, PublisherFile
from persephonee.multi_exit.atomic_files import new_folder_atomically, write_bytes_atomically

Arrays = dict[str, NDArray[Any]]

RESNET50 = PublisherFile(
    name="resnet50_weights_tf_dim_ordering_tf_kernels.h5",
    url="https://github.com/fchollet/deep-learning-models/releases/download/v0.2/"
    "resnet50_weights_tf_dim_ordering_tf_kernels.h5",
    checksum="md5:a7b3fe01876f51b976af0dea6bc144eb",
    stated_by="Keras Applications",
)
PORTED = "resnet50_v1_fp16.safetensors"

BLOCKS = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}
"""Keras' letters of the blocks of each stage; its stage 2 is torchvision's layer1."""

_PARAMETERS = {
    "weight": ("gamma",),
    "bias": ("beta",),
    "running_mean": ("running_mean", "moving_mean"),
    # Keras 1 called a variance std
    "running_var": ("running_std", "moving_variance"),
}


def mobilenet_file() -> PublisherFile:
    """Return torchvision's file; its name ends with how its SHA-256 begins."""
    from torchvision.models import MobileNet_V2_Weights

    url = MobileNet_V2_Weights.IMAGENET1K_V1.url
    name = url.rpartition("/")[2]
    prefix = re.search(r"-([0-9a-f]{8})\.pth", name)
    return PublisherFile(
        name=name, url=url, checksum=f"sha256:{prefix[1]}" if prefix else "", stated_by="torchvision, in its name,"
    )


def read_keras(path: Path) -> dict[str, Arrays]:
    """Return the arrays of each layer of a Keras HDF5 file, by the last word of their names, such as `kernel`.

    Raises:
        BrokenDataError: the file is no such file.
        ModuleNotFoundError: h5py is not installed.
    """
    import h5py

    layers: dict[str, Arrays] = {}
    try:
        with h5py.File(path, "r") as file:
            for layer in (name for name in file if isinstance(file[name], h5py.Group)):
                found: Arrays = {}
                file[layer].visititems(lambda name, node, found=found: _collect(found, name, node))
                layers[layer] = {_last_word(name, layer): array for name, array in found.items()}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise BrokenDataError(f"{path} is no HDF5 file of weights ({error}): fetch it again.") from error
    return layers


def port_resnet50(layers: Mapping[str, Arrays]) -> Arrays:
    """Return Keras' ResNet-50 v1 with torchvision's names and shapes.

    A convolution's bias goes into the running mean that follows it. The first convolution's channels, blue first in
    Keras, become red first. Kernels and the classifier's weights are float16, all else float32.

    Raises:
        BrokenDataError: a layer is missing, or has another shape.
    """
    state = _convolution(layers, "conv1", "bn_conv1", "conv1", "bn1")
    state["conv1.weight"] = np.ascontiguousarray(state["conv1.weight"][:, ::-1])
    for stage, letters in BLOCKS.items():
        for number, letter in enumerate(letters):
            theirs, ours = f"{stage}{letter}_branch", f"layer{stage - 1}.{number}"
            for place, part in enumerate(("2a", "2b", "2c"), start=1):
                names = (f"res{theirs}{part}", f"bn{theirs}{part}", f"{ours}.conv{place}", f"{ours}.bn{place}")
                state |= _convolution(layers, *names)
            if number == 0:
                names = (f"res{theirs}1", f"bn{theirs}1", f"{ours}.downsample.0", f"{ours}.downsample.1")
                state |= _convolution(layers, *names)
    state["fc.weight"] = np.ascontiguousarray(_one(layers, "fc1000", "kernel", "W").T.astype(np.float16))
    state["fc.bias"] = _one(layers, "fc1000", "bias", "b").astype(np.float32)
    return state


def _convolution(layers: Mapping[str, Arrays], conv: str, norm: str, our_conv: str, our_norm: str) -> Arrays:
    kernel = _one(layers, conv, "kernel", "W")
    if kernel.ndim != 4:
        raise BrokenDataError(f"The kernel of {conv} has the shape {list(kernel.shape)}, expected [H, W, in, out].")
    state = {f"{our_norm}.{ours}": _one(layers, norm, *theirs) for ours, theirs in _PARAMETERS.items()}
    state[f"{our_norm}.running_mean"] = state[f"{our_norm}.running_mean"] - _one(layers, conv, "bias", "b")
    state = {name: np.asarray(array, dtype=np.float32) for name, array in state.items()}
    state[f"{our_conv}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1).astype(np.float16))
    state[f"{our_norm}.num_batches_tracked"] = np.zeros((), dtype=np.int64)
    return state


def _one(layers: Mapping[str, Arrays], layer: str, *names: str) -> NDArray[Any]:
    found = [layers.get(layer, {})[name] for name in names if name in layers.get(layer, {})]
    if len(found) != 1:
        raise BrokenDataError(
            f"The layer {layer} has no {names[0]}: use {RESNET50.name}, as {RESNET50.stated_by} first published it."
        )
    return found[0]


def _collect(found: Arrays, name: str, node: Any) -> None:
    if hasattr(node, "shape"):
        found[name] = np.asarray(node)


def _last_word(name: str, layer: str) -> str:
    """Return `kernel` for `conv1/conv1/kernel:0`, and `W` for `conv1_W:0`, in the layer conv1."""
    return name.rpartition("/")[2].partition(":")[0].removeprefix(f"{layer}_")


def main(
    *,
    files: Files,
    out: Annotated[Path, typer.Option(help="Folder for both files; new or empty.")],
    download: Download = False,
    any_files: AnyFiles = False,
) -> None:
    """Write both networks' weights."""
    require_free(out)
    fetching = Fetching(folder=files, downloads=download, takes_any=any_files)
    mobilenet, keras = fetching.obtain(mobilenet_file()), fetching.obtain(RESNET50)
    state = port_resnet50(read_keras(keras))
    with new_folder_atomically(out) as made:
        shutil.copyfile(mobilenet, made / mobilenet.name)
        write_bytes_atomically(made / PORTED, safetensors.numpy.save(state))
    typer.echo(f"{out}: {mobilenet.name}, and {PORTED} with {len(state)} tensors.")


if __name__ == "__main__":
    run_program(main)
