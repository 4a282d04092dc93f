"""From the name of a CNN to a multi-exit network: trace, choose the places, cut, attach heads, count (Sec. 3.1.2)."""

import math
from pathlib import Path

import safetensors.torch
import torch
from torch import fx, nn

from persephonee.multi_exit.attach_points import AttachPoint, choose_attach_points, find_attach_points
from persephonee.multi_exit.backbones import (
    DEFAULT_SOURCES,
    SMALL_INPUT_PX,
    build_backbone,
    keep_resolution,
    load_weights,
)
from persephonee.multi_exit.costs import CostTable, ExitCost, count_macs
from persephonee.multi_exit.errors import BackboneError, ModelFileError, SettingsError
from persephonee.multi_exit.heads import build_head
from persephonee.multi_exit.network import MultiExitNetwork, NetworkSpec
from persephonee.multi_exit.tracing import InputNormalisation, Measurement, trace


def build_network(
    backbone: str,
    *,
    num_exits: int,
    num_classes: int,
    in_channels: int = 1,
    input_size: int = 28,
    head: str = "msdnet",
    weights: Path | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    allowed: tuple[str, ...] = DEFAULT_SOURCES,
    seed: int = 0,
) -> MultiExitNetwork:
    """Return the multi-exit network of a CNN, in eval() mode.

    Args:
        backbone: a torchvision classification model, `timm/NAME`, or `package.module:function`.
        num_exits: M, early exits besides the original classifier; 6 in the paper.
        num_classes: K, at least 2.
        in_channels: 1 or 3.
        input_size: side of the square images, in px; up to 48 px the stem keeps the resolution.
        head: "msdnet" or "pooled".
        weights: a .safetensors or .pth file with the backbone's trained weights; None for random ones.
        mean: per channel, subtracted from images in [0, 1]; none by default.
        std: per channel; given together with `mean`.
        allowed: the sources from which this machine builds backbones.
        seed: of the random weights.

    Raises:
        BackboneError: the backbone is unknown, not allowed, or has no places for exits.
        PlacementError: more exits than places.
        SettingsError: a setting is out of its range.
        ModelFileError: the weights cannot be read.
    """
    _check(num_classes, in_channels, input_size, mean, std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_backbone(backbone, num_classes, in_channels, allowed)
        if weights is not None:
            load_weights(model, read_weights(weights), backbone)
        stem, traced, measured = _trace_and_measure(model, backbone, in_channels, input_size, mean, std)
        total = max(measured.macs.values())
        chosen = choose_attach_points(find_attach_points(traced, measured, backbone), total, num_exits, backbone)
        spec = NetworkSpec(
            backbone=backbone,
            num_classes=num_classes,
            in_channels=in_channels,
            input_size=input_size,
            stem=stem,
            head=head,
            cuts=tuple(attach_point.node for attach_point in chosen),
            mean=mean,
            std=std,
        )
        return _assemble(traced, measured, chosen, spec)


def rebuild_network(spec: NetworkSpec, allowed: tuple[str, ...] = DEFAULT_SOURCES) -> MultiExitNetwork:
    """Return the network of a specification, with random weights.

    Raises:
        BackboneError: the backbone is unknown or not allowed on this machine.
        ModelFileError: the cuts do not exist in the backbone, as when torchvision changed it.
        SettingsError: a number of the specification is out of its range.
    """
    _check(spec.num_classes, spec.in_channels, spec.input_size, spec.mean, spec.std)
    model = build_backbone(spec.backbone, spec.num_classes, spec.in_channels, allowed)
    if spec.stem == "stride-1":
        keep_resolution(model)
    traced = trace(model, spec.backbone, _normalisation(spec.mean, spec.std))
    measured = Measurement(traced, (spec.in_channels, spec.input_size, spec.input_size), model, spec.backbone)
    by_node = {attach_point.node: attach_point for attach_point in find_attach_points(traced, measured, spec.backbone)}
    unknown = [cut for cut in spec.cuts if cut not in by_node]
    if unknown:
        raise ModelFileError(
            f"{spec.backbone} has no place {unknown[0]!r} for an exit in the installed version: "
            "install the version that saved the model, or pretrain it again."
        )
    return _assemble(traced, measured, tuple(by_node[cut] for cut in spec.cuts), spec)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors or .pth file; a .pth is read as tensors only, never as objects.

    Raises:
        ModelFileError: the file is missing, cut off, or holds something else than tensors.
    """
    if not path.is_file():
        raise ModelFileError(f"no weights file at {path}: give the path of a .safetensors or .pth file.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise a dozen kinds of errors for a damaged file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ModelFileError(f"{path} cannot be read as weights ({reason}): fetch or save the file again.") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelFileError(f"{path} holds no dictionary of tensors: save model.state_dict().")
    return state


def _check(
    num_classes: int, in_channels: int, input_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    if num_classes < 2:
        raise SettingsError(f"num_classes={num_classes} is out of range: expected at least 2.")
    if in_channels not in (1, 3):
        raise SettingsError(f"in_channels={in_channels} is out of range: expected 1 (grey) or 3 (colour).")
    if not 8 <= input_size <= 4096:
        raise SettingsError(f"input_size={input_size} is out of range: expected 8 to 4096 px.")
    fits = len(mean) == len(std) and len(mean) in (0, in_channels)
    if not fits or not all(map(math.isfinite, (*mean, *std))) or any(s <= 0 for s in std):
        raise SettingsError(f"mean={mean} and std={std} do not fit: expected {in_channels} numbers each, std > 0.")


def _trace_and_measure(
    model: nn.Module, name: str, in_channels: int, input_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[str, fx.GraphModule, Measurement]:
    """Return the stem that was used, the graph and its costs; the stem keeps the resolution where it must."""
    shape = (in_channels, input_size, input_size)
    normalisation = _normalisation(mean, std)
    if input_size > SMALL_INPUT_PX:
        in_place = [module for module in model.modules() if getattr(module, "inplace", False) is True]
        traced = trace(model, name, normalisation)
        try:
            return "original", traced, Measurement(traced, shape, model, name)
        except BackboneError:
            # made for larger images than these, as Inception is: try again at full resolution; tracing has switched off
            # what works in place, and has to see it to know who reads its result
            for module in in_place:
                module.inplace = True  # type: ignore[assignment]
    keep_resolution(model)
    traced = trace(model, name, normalisation)
    return "stride-1", traced, Measurement(traced, shape, model, name)


def _normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> InputNormalisation | None:
    return InputNormalisation(mean, std) if mean else None


def _assemble(
    traced: fx.GraphModule, measured: Measurement, chosen: tuple[AttachPoint, ...], spec: NetworkSpec
) -> MultiExitNetwork:
    stages = _cut(traced, spec.cuts)
    heads = [build_head(spec.head, attach_point.shape, spec.num_classes) for attach_point in chosen]
    total = max(measured.macs.values())
    rows = []
    # a set: a parameter that serves in two stages counts once
    params: set[nn.Parameter] = set()
    for i, stage in enumerate(stages):
        params.update(stage.parameters())
        is_last = i == len(heads)
        rows.append(
            ExitCost(
                exit=i,
                at="output" if is_last else chosen[i].at,
                share=1.0 if is_last else chosen[i].macs / total,
                macs=total if is_last else chosen[i].macs,
                params=sum(p.numel() for p in params),
                head_macs=0 if is_last else count_macs(heads[i], chosen[i].shape),
                head_params=0 if is_last else sum(p.numel() for p in heads[i].parameters()),
            )
        )
    shapes = tuple(attach_point.shape for attach_point in chosen)
    return MultiExitNetwork(stages, heads, spec, CostTable(tuple(rows)), shapes).eval()


def _cut(traced: fx.GraphModule, cuts: tuple[str, ...]) -> list[nn.Module]:
    """Return the stages: the graph cut behind the nodes `cuts`; their modules keep the names that they had."""
    stages: list[nn.Module] = []
    graph, environment = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            continue
        for used in node.all_input_nodes:
            # parameters that the author fetched once may be used in several stages
            if used not in environment and used.op == "get_attr":
                environment[used] = graph.node_copy(used)
        environment[node] = graph.node_copy(node, environment.__getitem__)
        if node.name in cuts:
            graph.output(environment[node])
            stages.append(fx.GraphModule(traced, graph))
            graph = fx.Graph()
            environment = {node: graph.placeholder("features")}
    stages.append(fx.GraphModule(traced, graph))
    return stages
