"""The same personalisation in apple/pfl-research's simulator: an baseline, `python -m ... SETTINGS RESULT`.

Written as its documentation recommends: a `FederatedDataset` with a function that makes a user's data, averaging
on a `SimulatedBackend`, `torchrun` with one process per core, users weighed by their samples so that the processes end
together. In its favour it evaluates each user once, after training, where its own personalisation algorithm does so
four times.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import DatasetSplit
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional

from persephonee.benchmarks.simulation.plain_flower.task import TaskSettings, load_model, open_data, read_settings
from persephonee.data_partitions.samples import to_float
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.network import MultiExitNetwork


class Exits(nn.Module):
    """The network as pfl takes it: the loss of a batch, and its metrics.

    Args:
        network: with a frozen backbone.
    """

    def __init__(self, network: MultiExitNetwork) -> None:
        super().__init__()
        self.network = network

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the exits' cross-entropies."""
        self.train()
        exits = self.network(images)[:-1]
        return torch.stack([functional.cross_entropy(logits, labels) for logits in exits]).sum()

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return the accuracy of each early exit."""
        self.eval()
        exits = self.network(images)[:-1]
        correct = [int((logits.argmax(dim=1) == labels).sum()) for logits in exits]
        return {f"exit {i}": Weighted(count, len(labels)) for i, count in enumerate(correct)}


class LocalExits(FederatedAveraging):  # type: ignore[misc]
    """FederatedAveraging that evaluates a user's model on held-out samples, once, after training."""

    def simulate_one_user(self, model: Any, user_dataset: Any, central_context: Any) -> Any:
        """Train a user without pfl's own evaluations before and after."""
        return super().simulate_one_user(model, user_dataset, replace(central_context, do_evaluation=False))

    def train_one_user(self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any) -> Any:
        """Train and evaluate; pfl puts the parameters back, and BatchNorm's statistics are put back here."""
        train, held_out = user_dataset.split()
        buffers = {name: buffer.clone() for name, buffer in model.pytorch_model.named_buffers()}
        statistics, metrics = super().train_one_user(initial_model_state, model, train, central_context)
        metrics |= model.evaluate(held_out, eval_params=central_context.model_eval_params)
        for name, buffer in model.pytorch_model.named_buffers():
            buffer.copy_(buffers[name])
        return statistics, metrics


class Collected(TrainingProcessCallback):  # type: ignore[misc]
    """Keeps the metrics of the last iteration."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """Take what all processes found together."""
        self.metrics = aggregate_metrics.to_simple_dict(to_lowercase=True)
        return False, Metrics()


def make_user(path: str, settings: TaskSettings, user: str) -> DatasetSplit:
    """Return a user's samples to train on and to test on."""
    partitions = open_data(path)
    samples = partitions.load_partition(partitions.client_ids.index(user))
    split = split_samples(samples, SplitSettings(), settings.seed)
    images = to_float(samples.images)
    parts = [
        PyTorchTensorDataset((images[part], torch.as_tensor(samples.labels[part])), user_id=user)
        for part in (split.train, split.test)
    ]
    return DatasetSplit(*parts)


def main(path: str, result: str) -> None:
    """Train every user once, and write the accuracy of each exit."""
    settings = read_settings(path)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    users, partitions = list(settings.users), open_data(path)
    weights = {user: partitions.counts[partitions.client_ids.index(user)] for user in users}
    data = FederatedDataset(
        lambda user: make_user(path, settings, user), get_user_sampler("minimize_reuse", users), weights
    )
    network = load_model(settings.model, settings.sources)
    model = PyTorchModel(
        Exits(network),
        lambda _, lr: torch.optim.SGD(network.heads.parameters(), lr=lr, momentum=settings.momentum),
        torch.optim.SGD(network.heads.parameters(), lr=1.0),
    )
    backend = SimulatedBackend(data, data)
    seen = Collected()
    LocalExits().run(
        NNAlgorithmParams(
            central_num_iterations=1, evaluation_frequency=1, train_user_batch_size=len(users), val_user_batch_size=0
        ),
        backend,
        model,
        NNTrainHyperParams(
            local_num_epochs=settings.epochs,
            local_learning_rate=settings.learning_rate,
            local_batch_size=settings.batch_size,
        ),
        NNEvalHyperParams(local_batch_size=128),
        [seen],
    )
    if pytorch_ops.distributed.global_rank == 0:
        accuracies = [seen.metrics[f"exit {i}"] for i in range(network.num_exits)]
        Path(result).write_text(json.dumps({"accuracies": accuracies}))


if __name__ == "__main__":
    main(*sys.argv[1:])
