"""Baselines without early exits; all need labels and the whole network.

On what the last exit's classifier takes: the classifier fitted by the fast schedule; the nearest class mean; and the
vote of the nearest neighbours, mixed with the classifier's answer (kNN-Per, Marfoq et al. 2022, arXiv 2111.09360). And
the whole network, fine-tuned.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from persephonee.clients.personalisation.training.fast_training import fit_classifiers
from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import LossWeights

NEIGHBOURS = 10
NEIGHBOURS_WEIGHT = 0.5
"""Of the neighbours' vote beside the classifier's probabilities: kNN-Per's lambda."""

Scores = Callable[[Tensor, Tensor], Tensor]
"""From what the classifier takes, [n, D], and its logits, [n, K], to scores [n, K]."""


def classifier_of(network: MultiExitNetwork) -> nn.Linear:
    """Return the last linear layer of the network, its classifier."""
    return [module for module in network.stages[-1].modules() if isinstance(module, nn.Linear)][-1]


@torch.no_grad()
def penultimate_of(network: MultiExitNetwork, images: Tensor) -> Tensor:
    """Return what the classifier takes of images, uint8 [N, C, H, W]; shape [N, D]."""
    taken: list[Tensor] = []
    hook = classifier_of(network).register_forward_pre_hook(lambda layer, inputs: taken.append(inputs[0]))
    network.eval()
    for piece in images.split(256):
        network.features(to_float(piece))
    hook.remove()
    return torch.cat(taken)


FINE_TUNING_RATE = 1e-3
FINE_TUNING_BATCH = 16


def fine_tuned(network: MultiExitNetwork, images: Tensor, labels: Tensor, epochs: int) -> nn.Sequential:
    """Return a copy of the backbone and its classifier whose every weight has learnt from a user's samples.

    SGD with momentum 0.9 and a rate that falls to 0; BatchNorm keeps the global statistics, since a user's batches are
    too small for their own.

    Args:
        network: the global model; it stays as it is.
        images: uint8 [n, C, H, W].
        labels: shape [n].
        epochs: passes over the samples, at least 1.
    """
    whole = nn.Sequential(*copy.deepcopy(network.stages)).requires_grad_(True).eval()
    optimiser = torch.optim.SGD(whole.parameters(), lr=FINE_TUNING_RATE, momentum=0.9)
    batches = -(-len(labels) // FINE_TUNING_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(FINE_TUNING_BATCH):
            optimiser.zero_grad()
            functional.cross_entropy(whole(to_float(images[batch])), labels[batch]).backward()
            optimiser.step()
            schedule.step()
    return whole.requires_grad_(False)


class _LastExit(nn.Module):
    """The last exit, as the fast schedule takes a head."""

    def __init__(self, classifier: nn.Linear) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(classifier)


def last_exit_baselines(classifier: nn.Linear, rows: Tensor, last_logits: Tensor, labels: Tensor) -> dict[str, Scores]:
    """Return the baselines by name, made of a user's n >= 1 training samples.

    Args:
        classifier: of the network; it stays as it is.
        rows: what it takes, shape [n, D].
        last_logits: what it answers, shape [n, K].
        labels: shape [n].
    """
    own = _LastExit(classifier)
    ones = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    fit_classifiers(nn.ModuleList([own]), [ones], last_logits, labels, LossWeights(alpha=1.0))
    members = functional.one_hot(labels, last_logits.shape[1]).float()
    counts = members.sum(dim=0)
    means = members.T @ rows / counts[:, None].clamp(min=1)
    # distances in units of the typical one, so that their exponentials say something
    scale = torch.cdist(rows, rows).median().clamp(min=1e-6)

    @torch.no_grad()
    def refitted(points: Tensor, logits: Tensor) -> Tensor:
        scores: Tensor = own.classifier(points)
        return scores

    def nearest_mean(points: Tensor, logits: Tensor) -> Tensor:
        return (-torch.cdist(points, means)).masked_fill(counts == 0, -torch.inf)

    def neighbours(points: Tensor, logits: Tensor) -> Tensor:
        found = torch.cdist(points, rows).topk(min(NEIGHBOURS, len(rows)), largest=False)
        votes = torch.softmax(-found.values / scale, dim=1)
        vote = torch.zeros_like(logits).scatter_add(1, labels[found.indices], votes)
        return NEIGHBOURS_WEIGHT * vote + (1 - NEIGHBOURS_WEIGHT) * torch.softmax(logits, dim=1)

    return {
        "last exit": lambda points, logits: logits,
        "last exit, refitted": refitted,
        "nearest class mean": nearest_mean,
        "kNN and last exit": neighbours,
    }
