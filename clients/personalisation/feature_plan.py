"""The planner: where each exit's features lie, so that a round stays within a memory budget (Sec. 3.1.3).

Exits are trained one after the other, so that beside the cached maps only one exit's training, or one chunk of the
backbone's pass, is in memory at a time. Budgets and estimates are bytes beside the network and the user's images.
"""

import copy
import shutil
import tempfile
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from persephonee.clients.errors import ClientSettingsError
from persephonee.multi_exit.network import MultiExitNetwork

BATCH_SIZE = 64
"""Images in one pass where memory allows: large enough for the matrix kernels."""
FLOAT = 4
KERNELS = 2.0
"""What the convolution kernels take for reordered copies, as a multiple of the tensors that they work on."""
HEAD_CHANNELS = 128


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """How the features of N samples are kept.

    Attributes:
        paths: for each of the M exits "memory", "half" (memory, float16), "file" (a temporary file, read by rows), or
            "recompute" (from the nearest kept exit before it, or from the images, whenever rows are asked for).
        chunk: images in one pass of the backbone, and samples in one pass of a head, at least 1.
        bytes: what the round will take at most, by estimate.
    """

    paths: tuple[str, ...]
    chunk: int = BATCH_SIZE
    bytes: int = 0


def plan_features(
    network: MultiExitNetwork,
    num_samples: int,
    budget: int,
    *,
    batch_size: int = 32,
    half: bool = False,
    file: bool = True,
) -> FeaturePlan:
    """Return the plan that keeps most in memory; all plans but float16 give the same features.

    Args:
        network: gives the sizes.
        num_samples: N.
        budget: bytes.
        batch_size: of the training.
        half: float16 may be used, where features are rounded to 11 bits.
        file: a temporary file may be used, where the disk has room; TMPDIR says where, which should be no RAM disk.

    Raises:
        ClientSettingsError: not even one image at a time fits.
    """
    sizes = [prod(shape) * FLOAT for shape in network.feature_shapes]
    heads = _bytes(network.heads)
    # the folded backbone; of the heads the personal ones, their gradients, momenta and the states that a round returns
    fixed = _bytes(network.stages) + 5 * heads
    image = int(KERNELS * _pass_bytes(network)) + sum(sizes)
    training = max(batch_size * _training_bytes(shape) for shape in network.feature_shapes)
    working = max(training, image)
    if fixed + working > budget:
        raise ClientSettingsError(
            f"memory_budget={budget} is too small: {network.spec.backbone} at {network.spec.input_size} px needs "
            f"{fixed + working} bytes beside its features; give more, or a smaller batch_size."
        )
    chunk = max(1, min(BATCH_SIZE, working // image))
    while chunk < BATCH_SIZE and fixed + 2 * chunk * image <= budget // 2:
        chunk *= 2
    working = max(working, chunk * image)
    left, room = budget - fixed - working, shutil.disk_usage(tempfile.gettempdir()).free // 2
    paths = []
    for size in reversed(sizes):
        # from the last exit on: its map is the smallest, and the dearest to compute again
        if num_samples * size <= left:
            paths.append("memory")
            left -= num_samples * size
        elif half and num_samples * size // 2 <= left:
            paths.append("half")
            left -= num_samples * size // 2
        elif file and num_samples * size <= room:
            paths.append("file")
            room -= num_samples * size
        else:
            paths.append("recompute")
    return FeaturePlan(paths=tuple(reversed(paths)), chunk=chunk, bytes=budget - left)


class _LiveBytes(fx.Interpreter):
    """The most bytes of tensors that are alive at once, on the meta device; the interpreter drops what is not used."""

    most = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        tensors = [value for value in (*self.env.values(), result) if isinstance(value, Tensor)]
        self.most = max(self.most, sum(tensor.nbytes for tensor in tensors))
        return result


@torch.no_grad()
def _pass_bytes(network: MultiExitNetwork) -> int:
    """Return the most that one image's pass through a stage keeps alive, in bytes."""
    most, current = 0, torch.empty(1, *network.input_shape, device="meta")
    for stage in network.stages:
        if not isinstance(stage, fx.GraphModule):
            raise TypeError("a stage is a torch.fx graph, as multi_exit.build_network makes it.")
        interpreter = _LiveBytes(copy.deepcopy(stage).to("meta"))
        current = interpreter.run(current)
        most = max(most, interpreter.most)
    return most


def _training_bytes(shape: tuple[int, int, int]) -> int:
    """Return what a sample takes in a head's training step: its map, and the outputs of two convolutions six times."""
    channels, height, width = shape
    outputs = 2 * HEAD_CHANNELS * -(-height // 2) * -(-width // 2)
    return FLOAT * int(channels * height * width * (1 + KERNELS) + 6 * outputs)


def _bytes(modules: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in modules.state_dict().values())
