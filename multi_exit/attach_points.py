"""Places where an exit can be attached, and the choice of those nearest to i/(M+1) of the MACs (Sec. 3.1.2).

A place is a node of the traced graph
- whose output is the only live tensor there: everything after it depends on nothing before it,
- which is a feature map [B, C, H, W] in that layout (not the NHWC inside a ConvNeXt block, not tokens),
- which comes after the first non-linearity,
- which ends a block: the wide maps inside an inverted residual are no places.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from persephonee.multi_exit.errors import BackboneError, PlacementError
from persephonee.multi_exit.stems import InputNormalisation
from persephonee.multi_exit.tracing import KEPT_WHOLE, Measurement

_MAP_MODULES = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_REARRANGING = {"permute", "transpose", "swapaxes", "view", "reshape", "flatten", "unflatten"}
_LINEAR = {
    *("add", "sub", "rsub", "neg", "mean", "sum", "cat", "concat", "stack", "getitem", "getattr", "chunk", "split"),
    *("conv2d", "conv_transpose2d", "linear", "pad", "pad_same", "interpolate", "upsample", "pixel_shuffle"),
    *("avg_pool2d", "adaptive_avg_pool2d", "identity", "dropout", "dropout2d", "alpha_dropout", "feature_dropout"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "contiguous", "clone", "copied", "to"),
    *("float", "type_as", "size", "dim", "expand", "expand_as", "repeat", "squeeze", "unsqueeze", "narrow"),
    *("roll", "flip", "unbind"),
    *("permute", "transpose", "swapaxes", "view", "reshape", "flatten", "unflatten", "movedim", "t"),
}
"""Functions and methods that are no activation; normalisation counts as none."""

_PRODUCTS = {"mul", "multiply", "div", "divide", "truediv", "matmul", "bmm", "einsum"}
"""Linear where only one factor depends on the images, as with a learned scale."""

_LINEAR_MODULES = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle),
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.PixelShuffle, nn.ZeroPad2d, nn.ReflectionPad2d),
    *(nn.ReplicationPad2d, nn.ConstantPad2d, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, InputNormalisation),
)


@dataclass(frozen=True, kw_only=True)
class AttachPoint:
    """Where an exit can be attached.

    Attributes:
        node: name of the node in the traced graph.
        at: the block that ends here, as its author named it.
        macs: multiply-adds of the backbone up to here, for one image.
        shape: (C, H, W) of the feature map.
    """

    node: str
    at: str
    macs: int
    shape: tuple[int, int, int]


def find_attach_points(traced: fx.GraphModule, measured: Measurement, name: str) -> tuple[AttachPoint, ...]:
    """Return all places in the order of the graph.

    Of places with the same cost only the last counts, behind BatchNorm, activation and pooling: two exits there
    would be one.

    Raises:
        BackboneError: there is none, as in a vision transformer.
    """
    attach_points = _attach_points(traced, measured)
    if not attach_points:
        whole = traced.meta.get(KEPT_WHOLE, {})
        inside = "".join(f", and its {kind} could not be looked into ({reason})" for kind, reason in whole.items())
        raise BackboneError(
            f"{name} has no places to attach exits: exits need feature maps [C, H, W] that are the only live tensor, "
            f"and transformers have none{inside}; use a CNN."
        )
    return attach_points


def has_attach_points(traced: fx.GraphModule, measured: Measurement) -> bool:
    """Return whether there is a place at all."""
    return bool(_attach_points(traced, measured))


def _attach_points(traced: fx.GraphModule, measured: Measurement) -> tuple[AttachPoint, ...]:
    maps = _feature_maps(traced, measured)
    block_ends = _block_ends(traced)
    attach_points: dict[int, AttachPoint] = {}
    for node in _only_live_tensors(traced, measured):
        if node in maps and node in block_ends:
            _, channels, height, width = measured.outputs[node.name].shape
            at, macs = block_ends[node], measured.macs[node.name]
            attach_points[macs] = AttachPoint(node=node.name, at=at, macs=macs, shape=(channels, height, width))
    return tuple(attach_points.values())


def choose_attach_points(
    attach_points: tuple[AttachPoint, ...], total_macs: int, num_exits: int, name: str
) -> tuple[AttachPoint, ...]:
    """Return the M places nearest to i/(M+1) of the MACs: the increasing choice with the smallest sum of distances.

    Of choices that are equally near the later places are taken.

    Raises:
        PlacementError: num_exits is below 1 or above the number of places.
    """
    if not 1 <= num_exits <= len(attach_points):
        found = "1 place" if len(attach_points) == 1 else f"{len(attach_points)} places"
        raise PlacementError(
            f"num_exits={num_exits} does not fit: {name} has {found} to attach one. "
            f"Use 1 <= num_exits <= {len(attach_points)}."
        )
    # best[j] = (distance, tie-break, choice) of the exits so far, the last of them at place j
    best: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
    for i in range(1, num_exits + 1):
        following: list[tuple[float, int, tuple[int, ...]]] = []
        for distance, lateness, choice in best:
            for j in range(choice[-1] + 1 if choice else 0, len(attach_points)):
                step = abs(attach_points[j].macs / total_macs - i / (num_exits + 1))
                following.append((round(distance + step, 12), lateness - j, (*choice, j)))
        ending: dict[int, tuple[float, int, tuple[int, ...]]] = {}
        for candidate in following:
            j = candidate[2][-1]
            ending[j] = min(ending.get(j, candidate), candidate)
        best = list(ending.values())
    return tuple(attach_points[j] for j in min(best)[2])


def _only_live_tensors(traced: fx.GraphModule, measured: Measurement) -> list[fx.Node]:
    """Return the nodes behind which no value computed earlier is used any more."""
    nodes = list(traced.graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    alone, latest = [], -1
    for index, node in enumerate(nodes):
        if node.op in ("call_module", "call_function", "call_method"):
            is_tensor = isinstance(measured.outputs[node.name], Tensor)
            # parameters are fetched again by each stage, so they do not count as live
            if is_tensor and latest <= index and last_use[node] > index:
                alone.append(node)
        if node.op != "get_attr":
            latest = max(latest, last_use[node])
    return alone


def _feature_maps(traced: fx.GraphModule, measured: Measurement) -> set[fx.Node]:
    """Return the nodes whose output is known to be [B, C, H, W] and comes after a non-linearity."""
    spatial: dict[fx.Node, torch.Size] = {}
    non_linear: set[fx.Node] = set()
    for node in traced.graph.nodes:
        output = measured.outputs[node.name]
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        operation = type(module).__name__ if module else getattr(node.target, "__name__", str(node.target))
        if any(n in non_linear for n in node.all_input_nodes) or _is_non_linear(module, operation, node):
            non_linear.add(node)
        if not isinstance(output, Tensor):
            continue
        inherited = [spatial[n] for n in node.all_input_nodes if n in spatial]
        if node.op == "placeholder" or isinstance(module, _MAP_MODULES) or _is_back_to_nchw(node, operation):
            spatial[node] = output.shape[-2:]
        elif operation in _REARRANGING:
            # ShuffleNet's channel shuffle goes through five dimensions and leaves the last two alone
            if output.shape[-2:] in inherited and operation not in ("permute", "flatten"):
                spatial[node] = output.shape[-2:]
        elif inherited and output.dim() >= 4:
            spatial[node] = output.shape[-2:]
    return {n for n in spatial if n in non_linear and measured.outputs[n.name].dim() == 4}


def _is_non_linear(module: nn.Module | None, operation: str, node: fx.Node) -> bool:
    """Return whether a node is an activation or may be one: what is not known to be linear is not."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if module is not None:
        return not isinstance(module, _LINEAR_MODULES)
    name = operation.strip("_")
    if name in _PRODUCTS:
        factors = [a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"]
        return len(factors) > 1
    return name not in _LINEAR


def _is_back_to_nchw(node: fx.Node, operation: str) -> bool:
    dims = node.args[1] if len(node.args) == 2 else node.args[1:]
    return operation == "permute" and dims in ((0, 3, 1, 2), [0, 3, 1, 2])


def _block_ends(traced: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the nodes that end a block, with the name of the outermost module that ends there.

    A block is a module with a forward() of its own that holds a convolution wider than 1x1, so squeeze-and-excitation
    is none. Inside a block only the ends of inner blocks count.
    """
    enclosing = {node: _enclosing_modules(node) for node in traced.graph.nodes}
    last_in = {path: node for node, modules in enclosing.items() for path in modules}
    blocks = {
        path
        for node, modules in enclosing.items()
        if node.op == "call_module" and _is_wide_convolution(traced.get_submodule(str(node.target)))
        for path, kind in modules.items()
        if not issubclass(kind, nn.Sequential | nn.Conv2d)
    }
    ends = {}
    for node, modules in enclosing.items():
        ended = [path for path in modules if last_in[path] is node]
        inside = any(path in blocks and last_in[path] is not node for path in modules)
        if not inside or any(path in blocks for path in ended):
            ends[node] = ended[0] if ended else node.name
    return ends


def _is_wide_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1


def _enclosing_modules(node: fx.Node) -> dict[str, type[nn.Module]]:
    """Return the modules around a node, the outermost first; the traced model itself is not among them."""
    return {path: kind for path, kind in node.meta.get("nn_module_stack", {}).values() if path}
