"""Which CNNs take exits, at what cost: prints docs/backbones.md.

    python -m persephonee.experiments.backbone_table > docs/backbones.md

About two minutes on one core. The same table for one backbone: `persephonee inspect --backbone NAME --num-exits 6
--input-size 64 --num-classes 62`.
"""

from collections.abc import Sequence

import torch
import torchvision
from rich.console import Console
from rich.progress import track

from persephonee.commands.terminal import run_program
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import MultiExitError
from persephonee.multi_exit.network import MultiExitNetwork

NUM_EXITS = 6
INPUT_SIZE = 64
NUM_CLASSES = 62

# one or two per family of torchvision, in the alphabet's order, with a tiny one where the family has it
BACKBONES = (
    *("alexnet", "convnext_tiny", "convnext_small", "densenet121", "densenet201", "efficientnet_b0"),
    *("efficientnet_b3", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet1_0"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "regnet_x_400mf", "regnet_x_1_6gf"),
    *("regnet_y_400mf", "regnet_y_1_6gf", "resnet18", "resnet50", "resnet101", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vgg11", "vgg16_bn", "vit_b_16", "vit_b_32", "wide_resnet50_2"),
)

HEADER = """\
# Backbones

`persephonee` takes any CNN that torch.fx can trace: a torchvision classification model by its name, `timm/NAME` where
timm is installed, and a function of your own as `package.module:function`, which takes `num_classes` and `in_channels`
and returns a module (its module has to be allowed on the machine that builds it).

An exit can sit where one feature map [C, H, W] is all that the rest of the network needs: between blocks, not inside
a residual or a dense block, and not in the NHWC layout inside a ConvNeXt block. Such a place is an attach point. Of
attach points with the same cost only the last counts. The M exits take those nearest to i/(M+1) of the backbone's
multiply-adds.

This page is printed by `python -m persephonee.experiments.backbone_table > docs/backbones.md`, for {num_exits} exits,
images of 3x{px}x{px} px, {num_classes} classes, torchvision {version}. The exits of one backbone, for any size:
`persephonee inspect --backbone NAME --num-exits {num_exits} --input-size {px} --num-classes {num_classes}`.
"""

ACCEPTED = """\
## Accepted

- MMACs: millions of multiply-adds of the original network for one image. Params: its parameters, in millions.
- Exits at: the fraction of the multiply-adds that is spent when an early exit is reached, without any exit head. Even
  spacing would be {even}.
- Heads: MMACs of the {num_exits} heads of the default kind, `auto`, and in brackets of `msdnet` and `pooled` ones.
  No `auto` head costs more than half of the network up to its exit; an `msdnet` head may cost more than that.
- Dearest: the largest fraction of the network up to its exit that an `auto` head costs, in brackets an `msdnet` one.
- Stem: *stride 1* where images of this size are too small for the published stem, which is then changed to keep
  the resolution. For images of up to 48 px that is always done.

| backbone | MMACs | params | exits at | heads | dearest | stem |
|---|---:|---:|---|---:|---:|---|
"""

REFUSED = """
## Refused

For each of these, the command ends with exit status 2 and the sentence beside it. A network with fewer attach points
than exits needs a smaller `--num-exits`. The only attach point of a Swin transformer is behind its last block, where
leaving saves nothing.

| backbone | why |
|---|---|
"""

LIMITS = """
## Good to know

- Regularisation that is decided while tracing remains off in training. This concerns the stochastic depth of ConvNeXt,
  EfficientNet and many timm models. Dropout that is a module of the classifier works as published.
- GoogLeNet and Inception are built without their auxiliary classifiers.
- Trained weights (`--weights FILE`) load by name, with `--mean` and `--std` as they were trained. A classifier for
  another number of classes is refused, because the last exit would predict at random. A first convolution that was
  trained on colour is summed over its channels for grey images.
- Where the feature map of an `msdnet` head is a single pixel, its BatchNorm needs a training batch of at least two
  images.
"""


def build(name: str, head: str = "auto") -> MultiExitNetwork:
    """Return the network of a line of the table, with random weights."""
    return build_network(
        name, num_exits=NUM_EXITS, num_classes=NUM_CLASSES, in_channels=3, input_size=INPUT_SIZE, head=head
    )


def accepted_row(name: str) -> str:
    """Return a line of the first table."""
    network, msdnet, pooled = (build(name, head) for head in ("auto", "msdnet", "pooled"))
    costs = network.costs
    shares = " ".join(f"{row.share:.3f}".removeprefix("0") for row in costs.exit_costs[:-1])
    auto_heads, msdnet_heads, pooled_heads = (
        sum(row.head_macs for row in n.costs.exit_costs) / 1e6 for n in (network, msdnet, pooled)
    )
    of_auto, of_msdnet = (max(row.head_macs / row.macs for row in n.costs.exit_costs) for n in (network, msdnet))
    dearest = f"{of_auto:.2f} ({of_msdnet:.2f})"
    stem = "stride 1" if network.spec.stem == "stride-1" else "published"
    sizes = f"{costs.original_macs / 1e6:,.1f} | {costs.original_params / 1e6:.2f}"
    heads = f"{auto_heads:.1f} ({msdnet_heads:.1f}, {pooled_heads:.2f})"
    return f"| {name} | {sizes} | {shares} | {heads} | {dearest} | {stem} |"


def tables(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the lines of the accepted and of the refused backbones."""
    accepted, refused = [], []
    errors = Console(stderr=True)
    for name in track(names, description="backbones", console=errors, disable=not errors.is_terminal):
        try:
            accepted.append(accepted_row(name))
        except MultiExitError as error:
            refused.append(f"| {name} | {error} |")
    return accepted, refused


def main() -> None:
    """Print the page."""
    torch.set_num_threads(1)
    accepted, refused = tables(BACKBONES)
    even = " ".join(f"{i / (NUM_EXITS + 1):.3f}".removeprefix("0") for i in range(1, NUM_EXITS + 1))
    version = torchvision.__version__.split("+")[0]
    print(HEADER.format(num_exits=NUM_EXITS, px=INPUT_SIZE, num_classes=NUM_CLASSES, version=version))
    print(ACCEPTED.format(even=even, num_exits=NUM_EXITS) + "\n".join(accepted))
    print(REFUSED + "\n".join(refused))
    print(LIMITS, end="")


if __name__ == "__main__":
    run_program(main)
