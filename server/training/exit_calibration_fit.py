"""The calibration of a model's exits on users whom its training never saw (Alexandari et al. 2020, arXiv 1901.06852).

A temperature and a bias per class and exit, by the likelihood of the labels; a normal pull with a standard deviation of
1 holds the logarithm of the temperature at 0 and the biases at 0, so that rare classes and faultless exits stay finite.
"""

import torch
from torch import Tensor
from torch.nn import functional

from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.errors import PretrainingError
from persephonee.server.training.training_samples import SampleTable

BATCH = 256


def fit_calibration(network: MultiExitNetwork, table: SampleTable) -> ExitCalibration:
    """Return the calibration of all exits; leaves eval() mode on.

    Args:
        network: trained.
        table: labelled samples of users whom training never saw; their class frequencies, smoothed by one sample a
            class, are the global ones.

    Raises:
        PretrainingError: there is no sample, or an exit's logits are not finite.
    """
    if not len(table):
        raise PretrainingError("there is no sample to calibrate the exits on: give users whom training never saw.")
    fitted = [fit_exit(exit, table.labels) for exit in all_logits(network, table)]
    counts = torch.bincount(table.labels, minlength=network.num_classes).double() + 1
    return ExitCalibration(
        temperatures=tuple(temperature for temperature, _ in fitted),
        biases=tuple(bias for _, bias in fitted),
        frequencies=tuple((counts / counts.sum()).tolist()),
    )


@torch.no_grad()
def all_logits(network: MultiExitNetwork, table: SampleTable) -> Tensor:
    """Return the logits of all exits, shape [M+1, N, K], float64."""
    network.eval()
    device = next(network.parameters()).device
    pieces = [torch.stack(network(to_float(images.to(device)))).cpu().double() for images in table.images.split(BATCH)]
    logits = torch.cat(pieces, dim=1)
    if not torch.isfinite(logits).all():
        raise PretrainingError("an exit's logits are not finite: train the model again, with a smaller learning rate.")
    return logits


def fit_exit(logits: Tensor, labels: Tensor) -> tuple[float, tuple[float, ...]]:
    """Return the temperature and the K biases of one exit, of its float64 logits [N, K] and the labels [N]."""
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        pull = (log_temperature**2 + bias.square().sum()) / (2 * len(labels))
        value = functional.cross_entropy(logits / log_temperature.exp() + bias, labels) + pull
        value.backward()
        return value

    optimiser.step(loss)
    return log_temperature.exp().item(), tuple(bias.tolist())
