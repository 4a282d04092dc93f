"""The feature cache: what the exit heads see, from one pass through the frozen backbone (Sec. 3.1.3).

The backbone never changes on the device, so its output for a sample is the same in every epoch and is computed once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clients.frozen_backbone import frozen_backbone
from data_partitions.samples import to_float
from multi_exit.network import MultiExitNetwork

BATCH_SIZE = 64
"""Images in one pass: large enough for the matrix kernels, small enough for a device's memory."""


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Cached features of N samples.

    Attributes:
        maps: what each of the M heads takes, shape [N, C_i, H_i, W_i], float32.
        last_logits: logits of the last exit, shape [N, K], float32.
    """

    maps: tuple[Tensor, ...]
    last_logits: Tensor


@torch.no_grad()
def compute_features(network: MultiExitNetwork, images: Tensor) -> FeatureCache:
    """Return the features of `images`, uint8 [N, C, H, W], with the backbone in eval().

    The network must be frozen (`freeze_backbone`), else a later train() would make the cache stale.
    """
    network.eval()
    backbone = frozen_backbone(network)
    device = next(network.parameters()).device
    batches = [backbone.features(to_float(batch.to(device))) for batch in images.split(BATCH_SIZE)]
    maps = tuple(torch.cat([features[i] for features, _ in batches]) for i in range(network.num_exits))
    return FeatureCache(maps=maps, last_logits=torch.cat([logits for _, logits in batches]))
