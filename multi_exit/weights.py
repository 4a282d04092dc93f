"""A backbone's trained weights: from a file, or published by torchvision and timm."""

import re
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from persephonee.multi_exit.errors import BackboneError, ModelFileError
from persephonee.multi_exit.own_networks import convolutions

_SUFFIXES = frozenset(
    {".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".tar", ".pkl", ".npz", ".npy", ".h5", ".keras", ".onnx", ".zip"}
)


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights from the network's authors.

    Attributes:
        state: tensors by their names.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, divides the difference.
    """

    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def names_published_weights(weights: Path | str) -> bool:
    """Return whether `weights` is a word such as DEFAULT or IMAGENET1K_V2, and no file."""
    path = Path(weights)
    is_file = path.suffix.lower() in _SUFFIXES or path.name != str(weights) or path.exists()
    return not is_file


def published_weights(backbone: str, weights: str) -> PublishedWeights:
    """Return published weights from the cache of torch or of the hub, or else from the network.

    Args:
        backbone: a torchvision model, or `timm/NAME`.
        weights: DEFAULT; of torchvision also a name such as IMAGENET1K_V1, of timm a tag such as a1_in1k.

    Raises:
        BackboneError: the backbone has no such weights.
        ModelFileError: they cannot be fetched or read.
    """
    if ":" in backbone:
        raise BackboneError(f"{backbone} has no published weights {weights!r}: give the path of a weights file.")
    try:
        return _of_timm(backbone, weights) if backbone.startswith("timm/") else _of_torchvision(backbone, weights)
    except (OSError, RuntimeError) as error:
        raise ModelFileError(
            f"the weights {weights!r} of {backbone} cannot be fetched ({str(error).splitlines()[0][:120]}): "
            "connect to the network once, or give the path of a weights file."
        ) from None


def _of_torchvision(name: str, weights: str) -> PublishedWeights:
    from torchvision import models

    known = models.get_model_weights(name).__members__
    chosen = known.get(weights.rpartition(".")[2])
    if chosen is None:
        raise BackboneError(f"{name} has no published weights {weights!r}: use one of {', '.join(known) or 'none'}.")
    # tensors only: nothing that came over the network is unpickled
    state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    if name in ("googlenet", "inception_v3"):
        # trained elsewhere, on images in [-1, 1]; torchvision maps its own normalisation to that one inside the network
        return PublishedWeights(state=state, mean=(0.5,) * 3, std=(0.5,) * 3)
    transforms = chosen.transforms()
    return PublishedWeights(state=state, mean=tuple(transforms.mean), std=tuple(transforms.std))


def _of_timm(name: str, weights: str) -> PublishedWeights:
    from huggingface_hub import hf_hub_download
    from timm.models import get_pretrained_cfg

    architecture, _, tag = name.removeprefix("timm/").partition(".")
    tag = tag if weights == "DEFAULT" else weights
    try:
        published = get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    except RuntimeError:
        published = None
    if published is None or not published.hf_hub_id:
        raise BackboneError(f"{name} has no published weights {weights!r}: see timm.list_pretrained().")
    path = Path(hf_hub_download(published.hf_hub_id, "model.safetensors"))
    return PublishedWeights(state=read_weights(path), mean=tuple(published.mean), std=tuple(published.std))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or .pth file; a .pth is read as tensors only, never as objects.

    A checkpoint that holds one dictionary of tensors among other things is taken for it.

    Raises:
        ModelFileError: the file is missing, cut off, or holds something else than tensors.
    """
    if not path.is_file():
        raise ModelFileError(f"no weights file at {path}: give the path of a .safetensors or .pth file, or DEFAULT.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise a dozen kinds of errors for a damaged file
        raise ModelFileError(f"{path} cannot be read as weights: {_complaint(str(error))}") from None
    found = _states(state)
    if len(found) > 1:
        raise ModelFileError(
            f"{path} holds several dictionaries of tensors, {', '.join(found)}: save one of them alone."
        )
    if not found:
        raise ModelFileError(f"{path} holds no dictionary of tensors: save model.state_dict().")
    return next(iter(found.values()))


def _complaint(error: str) -> str:
    """Return what keeps a file from being read, and what to do, of the many words of its reader."""
    kept = re.search(r"GLOBAL (\S+)", error)
    if kept:
        return f"beside tensors it holds {kept[1]}, and nothing is unpickled here; save model.state_dict() alone."
    if "TorchScript" in error:
        return "it is a TorchScript program; save the state_dict() of the network that it was made from."
    if not error or "Weights only load" in error:
        return "it is none that torch.save wrote; fetch or save the file again."
    return f"{error.splitlines()[0][:120].rstrip('.')}; fetch or save the file again."


def _states(value: object, name: str = "state") -> dict[str, dict[str, Tensor]]:
    """Return the dictionaries of tensors in a checkpoint by their keys, those nearest to the outside."""
    if _is_state(value):
        return {name: value}  # type: ignore[dict-item]
    if not isinstance(value, dict):
        return {}
    nearest = {str(key): inner for key, inner in value.items() if _is_state(inner)}
    if nearest:
        return nearest
    deeper = [_states(inner) for key, inner in value.items() if "optim" not in str(key)]
    return {key: state for states in deeper for key, state in states.items()}


def load_weights(model: nn.Module, state: dict[str, Tensor], name: str, *, new_classifier: bool = False) -> bool:
    """Load trained weights by their names, in place, and return whether the classifier kept its random ones.

    A prefix that all names have in common, as nn.DataParallel's `module.` and torch.compile's `_orig_mod.`, is left
    out. A first convolution that was trained on colours serves grey images with the sum over its channels: it answers
    as to an image whose three channels are the same.

    Args:
        model: the network.
        state: tensors by their names.
        name: of the network, for errors.
        new_classifier: a classifier for another number of classes stays untrained, and is no error.

    Raises:
        BackboneError: a parameter has no weights, as of another architecture or of another number of classes.
    """
    own = model.state_dict()
    state = _without_prefix(state, list(own))
    path, first = next(convolutions(model), ("", None))
    stem = f"{path}.weight"
    if first is not None and stem in state and first.weight.shape == state[stem].sum(1, keepdim=True).shape:
        state[stem] = state[stem].sum(1, keepdim=True)
    fitting = {k: v.to(own[k].dtype) for k, v in state.items() if k in own and own[k].shape == v.shape}
    # a counter that no inference reads; files from before PyTorch 0.4.1 lack it
    missing = [k for k in own if k not in fitting and not k.endswith("num_batches_tracked")]
    if len(missing) > len(own) / 2:
        raise BackboneError(
            f"the weights do not fit {name}: {len(fitting)} of {len(own)} tensors have its names and shapes, the file "
            f"begins with {next(iter(state), 'nothing')!r} and the network with {next(iter(own))!r}; "
            "use weights of the same architecture."
        )
    others = [k for k in missing if k not in state or own[k].shape[1:] != state[k].shape[1:]]
    if others or (missing and not new_classifier):
        wrong = (others or missing)[0]
        shape = tuple(state[wrong].shape) if wrong in state else "nothing"
        raise BackboneError(
            f"the weights do not fit {name}: {wrong} has the shape {tuple(own[wrong].shape)} here and "
            f"{shape} in the file; use weights for this number of classes and channels, or train from scratch."
        )
    # into the model's own dictionary, whose version numbers torchvision's MNASNet insists on
    own.update(fitting)
    model.load_state_dict(own)
    return bool(missing)


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and len(value) > 0 and all(isinstance(v, Tensor) for v in value.values())


def _without_prefix(state: dict[str, Tensor], own: list[str]) -> dict[str, Tensor]:
    if not own or own[0] in state:
        return dict(state)
    prefixes = {k.removesuffix(own[0]) for k in state if k.endswith(f".{own[0]}")}
    if len(prefixes) != 1:
        return dict(state)
    prefix = prefixes.pop()
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
