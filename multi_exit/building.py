"""From the name of a CNN to a multi-exit network: trace, choose the places, cut, attach heads, count (Sec. 3.1.2)."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from persephonee.multi_exit.answers import ask, make_lazy_layers, probe_images, refuse_squashed
from persephonee.multi_exit.attach_points import choose_attach_points, find_attach_points, has_attach_points
from persephonee.multi_exit.backbones import build_backbone, is_known_family
from persephonee.multi_exit.cutting import MeasuredCNN, assemble
from persephonee.multi_exit.errors import BackboneError, ModelFileError, PlacementError, SettingsError
from persephonee.multi_exit.heads import fits
from persephonee.multi_exit.network import MultiExitNetwork, NetworkSpec
from persephonee.multi_exit.own_networks import GIVEN, given_network, unwrapped
from persephonee.multi_exit.settings import DEFAULT_SOURCES
from persephonee.multi_exit.stems import SMALL_INPUT_PX, STRIDE_1, InputNormalisation, keep_resolution
from persephonee.multi_exit.tracing import Measurement, trace
from persephonee.multi_exit.weights import load_weights, names_published_weights, published_weights, read_weights

USUAL_EXITS = 6
"""As many early exits has the paper's network."""


def build_network(
    backbone: str | nn.Module,
    *,
    num_exits: int | None,
    num_classes: int | None = None,
    in_channels: int = 1,
    input_size: int = 28,
    head: str = "auto",
    stem: str = "auto",
    weights: Path | str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    allowed: tuple[str, ...] = DEFAULT_SOURCES,
    seed: int = 0,
) -> MultiExitNetwork:
    """Return the multi-exit network of a CNN, in eval() mode; its last exit answers as the CNN does.

    Args:
        backbone: a CNN of your own, which is copied; or a torchvision classification model, `timm/NAME`, or
            `package.module:function`, which any process can build again.
        num_exits: M, early exits besides the original classifier; None takes 6 as the paper does, or as many as fit.
        num_classes: K, at least 2; may be left out with a CNN of your own.
        in_channels: 1 or 3.
        input_size: side of the square images, in px.
        head: "auto", "msdnet" or "pooled"; "auto" never costs more than half of the network up to the exit; or
            `package.module:function`, which makes a head of (shape, num_classes).
        stem: "original"; "stride-1", which keeps the resolution of small images; or "auto", which is stride-1 for
            untrained torchvision and timm networks up to 48 px or where they run on nothing else, and leaves networks
            with weights and networks of your own alone.
        weights: a .safetensors or .pth file with the backbone's trained weights, or the name of published ones, such
            as "DEFAULT" or "IMAGENET1K_V1"; None for random ones.
        mean: per channel, subtracted from images in [0, 1]; published weights bring theirs. Three for grey images give
            the network three equal channels.
        std: per channel; given together with `mean`.
        allowed: the sources from which this machine builds backbones and heads.
        seed: of the random weights.

    Raises:
        BackboneError: the backbone is unknown, not allowed, has no places for exits, or is no classifier that can be
            cut.
        PlacementError: more exits than places.
        SettingsError: a setting is out of its range.
        ModelFileError: the weights cannot be read.
    """
    if isinstance(backbone, nn.Module):
        backbone = unwrapped(backbone, type(backbone).__name__)
    published = None
    if weights is not None and names_published_weights(weights):
        name = backbone if isinstance(backbone, str) else GIVEN
        published = published_weights(name, str(weights))
        mean, std = (mean, std) if mean else (published.mean, published.std)
    _check(num_classes, in_channels, input_size, mean, std)
    if num_classes is None and isinstance(backbone, str):
        raise SettingsError("num_classes is missing: expected the number of classes of the data.")
    spec = NetworkSpec(
        backbone=backbone if isinstance(backbone, str) else f"{GIVEN}{type(backbone).__name__}",
        num_classes=num_classes or 0,
        in_channels=in_channels,
        input_size=input_size,
        stem=stem,
        head=head,
        cuts=(),
        mean=mean,
        std=std,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _make(spec, allowed, backbone)
        classifier_is_new = False
        if weights is not None:
            state = published.state if published else read_weights(Path(weights))
            classifier_is_new = load_weights(model, state, spec.backbone, new_classifier=published is not None)
        spec, cnn = _with_stem(model, spec, is_known=weights is None and is_known_family(spec.backbone))
        name = name_of(spec)
        attach_points = find_attach_points(cnn.traced, cnn.measured, name)
        if head == "auto":
            attach_points = tuple(p for p in attach_points if fits(p.shape, spec.num_classes, p.macs))
            if not attach_points:
                raise PlacementError(
                    f"{name} has no place where an exit costs at most half of the network up to it: give a larger "
                    "network, or ask for the head msdnet or pooled."
                )
        num_exits = min(USUAL_EXITS, len(attach_points)) if num_exits is None else num_exits
        chosen = choose_attach_points(attach_points, max(cnn.measured.macs.values()), num_exits, name)
        network = assemble(cnn, chosen, replace(spec, cuts=tuple(point.node for point in chosen)), allowed)
        network.classifier_is_new = classifier_is_new
        return network


def rebuild_network(
    spec: NetworkSpec, allowed: tuple[str, ...] = DEFAULT_SOURCES, backbone: nn.Module | None = None
) -> MultiExitNetwork:
    """Return the network of a specification, with random weights.

    Args:
        spec: of the network.
        allowed: the sources from which this machine builds backbones and heads.
        backbone: the CNN, where the network was built from one in memory.

    Raises:
        BackboneError: the backbone is unknown or not allowed on this machine.
        ModelFileError: the cuts do not exist in the backbone, as when torchvision changed it.
        SettingsError: a number of the specification is out of its range.
    """
    _check(spec.num_classes, spec.in_channels, spec.input_size, spec.mean, spec.std)
    if spec.stem not in ("original", STRIDE_1):
        raise SettingsError(f"stem={spec.stem!r} is unknown: expected original or {STRIDE_1}.")
    model = _make(spec, allowed, backbone or spec.backbone)
    if spec.stem == STRIDE_1:
        keep_resolution(model)
    cnn = _trace_and_measure(model, spec)
    attach_points = find_attach_points(cnn.traced, cnn.measured, name_of(spec))
    by_node = {attach_point.node: attach_point for attach_point in attach_points}
    unknown = [cut for cut in spec.cuts if cut not in by_node]
    if unknown:
        raise ModelFileError(
            f"{spec.backbone} has no place {unknown[0]!r} for an exit in the installed version: "
            "install the version that saved the model, or pretrain it again."
        )
    if list(spec.cuts) != [node for node in by_node if node in spec.cuts]:
        raise ModelFileError(
            f"the exits of this {spec.backbone} are not in the order in which it computes: pretrain the model again."
        )
    return assemble(cnn, tuple(by_node[cut] for cut in spec.cuts), spec, allowed)


def name_of(spec: NetworkSpec) -> str:
    """Return what errors call the backbone."""
    return spec.backbone.removeprefix(GIVEN)


def _make(spec: NetworkSpec, allowed: tuple[str, ...], backbone: str | nn.Module) -> nn.Module:
    """Return the CNN, with all of its layers made."""
    channels = len(spec.mean) or spec.in_channels
    if isinstance(backbone, nn.Module):
        model = given_network(backbone)
    else:
        model = build_backbone(backbone, spec.num_classes, channels, allowed)
    make_lazy_layers(model, name_of(spec), probe_images((channels, spec.input_size, spec.input_size)))
    return model


def _with_stem(model: nn.Module, spec: NetworkSpec, is_known: bool) -> tuple[NetworkSpec, MeasuredCNN]:
    """Return the specification with the stem that was used, and the CNN; only a stem that may change is changed."""
    if spec.stem not in ("auto", "original", STRIDE_1):
        raise SettingsError(f"stem={spec.stem!r} is unknown: expected auto, original or {STRIDE_1}.")
    may_change = spec.stem == "auto" and is_known
    cnn = None
    if not (spec.stem == STRIDE_1 or (may_change and spec.input_size <= SMALL_INPUT_PX)):
        try:
            spec, cnn = replace(spec, stem="original"), _trace_and_measure(model, spec)
        except BackboneError:
            # made for larger images than these, as Inception is: try again at full resolution
            if not may_change:
                raise
    if cnn is None:
        keep_resolution(model)
        spec, cnn = replace(spec, stem=STRIDE_1), _trace_and_measure(model, spec)
    return replace(spec, num_classes=cnn.logits.shape[1]), cnn


def _trace_and_measure(model: nn.Module, spec: NetworkSpec) -> MeasuredCNN:
    """Ask the CNN, trace it and count its costs."""
    shape = (spec.in_channels, spec.input_size, spec.input_size)
    normalisation = InputNormalisation(spec.mean, spec.std) if spec.mean else None
    images = normalisation(probe_images(shape)) if normalisation else probe_images(shape)
    logits = ask(model, name_of(spec), images, spec.num_classes or None)
    # tracing switches off what works in place in the modules that it shares, and has to see it
    for with_shapes in (False, True):
        traced = trace(model, name_of(spec), (images.shape[1], *shape[1:]), normalisation, with_shapes=with_shapes)
        refuse_squashed(traced, name_of(spec))
        measured = Measurement(traced, shape, name_of(spec))
        # sizes that forward() reads at its beginning and uses at its end are live values everywhere between
        if has_attach_points(traced, measured):
            break
    return MeasuredCNN(image_shape=shape, logits=logits, traced=traced, measured=measured)


def _check(
    num_classes: int | None, in_channels: int, input_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    if num_classes is not None and num_classes < 2:
        raise SettingsError(f"num_classes={num_classes} is out of range: expected at least 2.")
    if in_channels not in (1, 3):
        raise SettingsError(f"in_channels={in_channels} is out of range: expected 1 (grey) or 3 (colour).")
    if not 8 <= input_size <= 4096:
        raise SettingsError(f"input_size={input_size} is out of range: expected 8 to 4096 px.")
    matches = len(mean) == len(std) and len(mean) in (0, in_channels, 3)
    if not matches or not all(map(math.isfinite, (*mean, *std))) or any(s <= 0 for s in std):
        raise SettingsError(f"mean={mean} and std={std} do not fit: expected {in_channels} numbers each, std > 0.")
