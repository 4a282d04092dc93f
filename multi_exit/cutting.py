"""A measured CNN cut into stages, with a head behind each but the last, and the costs of each exit (Sec. 3.1.2)."""

from dataclasses import dataclass

from torch import Tensor, fx, nn

from persephonee.multi_exit.answers import check_same_answers, probe_images
from persephonee.multi_exit.attach_points import AttachPoint
from persephonee.multi_exit.costs import CostTable, ExitCost, count_macs
from persephonee.multi_exit.heads import build_head
from persephonee.multi_exit.network import MultiExitNetwork, NetworkSpec
from persephonee.multi_exit.own_networks import GIVEN
from persephonee.multi_exit.tracing import Measurement


@dataclass(frozen=True, kw_only=True)
class MeasuredCNN:
    """A CNN, what it answers, and its graph.

    Attributes:
        image_shape: (C, H, W) of an image.
        logits: its answers to the probe images, [B, K].
        traced: the graph, which begins with the normalisation.
        measured: of the graph.
    """

    image_shape: tuple[int, int, int]
    logits: Tensor
    traced: fx.GraphModule
    measured: Measurement


def assemble(
    cnn: MeasuredCNN, chosen: tuple[AttachPoint, ...], spec: NetworkSpec, allowed: tuple[str, ...]
) -> MultiExitNetwork:
    """Return the multi-exit network of a CNN, in eval() mode.

    Args:
        cnn: to cut; the network takes its modules.
        chosen: where the M exits are attached.
        spec: of the network.
        allowed: the sources from which this machine takes heads.

    Raises:
        BackboneError: the last exit does not answer as the CNN does.
        SettingsError: the kind of head is unknown.
    """
    stages = _cut(cnn.traced, spec.cuts)
    name = spec.backbone.removeprefix(GIVEN)
    check_same_answers(nn.Sequential(*stages).eval(), name, probe_images(cnn.image_shape), cnn.logits)
    heads = [build_head(spec.head, point.shape, spec.num_classes, point.macs, allowed) for point in chosen]
    total = max(cnn.measured.macs.values())
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
