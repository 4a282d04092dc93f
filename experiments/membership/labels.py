"""Label inference: how well a server guesses a user's class frequencies from the figures of a metrics-only device.

The server knows the frequencies and the figures of other users, fits a ridge regression from the one to the other, and
guesses the user in question; that is measured against a guess that knows no figures, the other users' mean. A server
whose first model is crafted, exit i saying class i whatever it sees, reads M frequencies out of the accuracies, to half
a step each, and guesses the rest by the other users' mean.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from persephonee.clients.personalisation.evaluation import ExitOutputs, run_exits
from persephonee.clients.personalisation.features import compute_features
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.costs import CostTable
from persephonee.multi_exit.network import MultiExitNetwork

Floats = NDArray[np.float64]
Figures = Callable[[ExitOutputs, NDArray[np.int64], CostTable], Floats]
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Of the ridge; the one that is best for the attacker counts."""


def infer_labels(
    network: MultiExitNetwork, users: Sequence[tuple[UserSamples, SampleSplit]], figures: Figures
) -> pd.DataFrame:
    """Return guess, error and its standard error: the total variation distance to the test part's true frequencies.

    Args:
        network: the global model.
        users: whom it never saw, 3 or more.
        figures: what a device says of the early exits on a test part.
    """
    truths, honest, crafted = [], [], []
    for samples, split in users:
        labels = samples.labels[split.test]
        truths.append(np.bincount(labels, minlength=network.num_classes) / len(labels))
        outputs = run_exits(network.heads, compute_features(network, samples.images), split.test)
        honest.append(figures(outputs, labels, network.costs))
        # three figures an exit, the accuracy first
        crafted.append(figures(_saying(outputs, network), labels, network.costs)[::3])
    truth, reports, told = np.stack(truths), np.stack(honest), np.stack(crafted)
    means = (truth.sum(axis=0) - truth) / (len(truth) - 1)
    guesses = {
        "no figures: the other users' mean": means,
        "figures of an honest model": _best(truth, [_leave_one_out(reports, truth, s) for s in STRENGTHS]),
        "figures of a crafted first model": _told(means, told),
    }
    errors = {name: np.abs(guess - truth).sum(axis=1) / 2 for name, guess in guesses.items()}
    rows = [(name, e.mean(), e.std(ddof=1) / np.sqrt(len(e)), len(e)) for name, e in errors.items()]
    return pd.DataFrame(rows, columns=["guess", "error", "error_se", "users"])


def label_markdown(table: pd.DataFrame) -> str:
    """Return the table of `infer_labels` for a page."""
    rows = [f"| {row.guess} | {row.error:.3f} ± {row.error_se:.3f} |" for row in table.itertuples()]
    users = table.users.max()
    note = f"{users} users; error: total variation distance to the true class frequencies of the test part, 0 to 1."
    return "\n".join(["| the server guesses the class frequencies by | error |", "|---|---|", *rows, "", note])


def _saying(outputs: ExitOutputs, network: MultiExitNetwork) -> ExitOutputs:
    """Return what exits say of which exit i always says class i."""
    logits = torch.zeros(network.num_exits + 1, outputs.predictions.shape[1], network.num_classes)
    for exit in range(network.num_exits):
        logits[exit, :, exit % network.num_classes] = 50.0
    return ExitOutputs.of(logits)


def _leave_one_out(reports: Floats, truth: Floats, strength: float) -> Floats:
    guesses = np.empty_like(truth)
    for user in range(len(truth)):
        others = np.arange(len(truth)) != user
        centre, mean = reports[others].mean(axis=0), truth[others].mean(axis=0)
        scale = reports[others].std(axis=0) + 1e-9
        known = (reports[others] - centre) / scale
        weights = np.linalg.solve(known.T @ known + strength * np.eye(known.shape[1]), known.T @ (truth[others] - mean))
        guesses[user] = mean + ((reports[user] - centre) / scale) @ weights
    return guesses


def _best(truth: Floats, guesses: Sequence[Floats]) -> Floats:
    return min(guesses, key=lambda guess: float(np.abs(guess - truth).sum()))


def _told(means: Floats, told: Floats) -> Floats:
    guesses, count = means.copy(), told.shape[1]
    guesses[:, :count] = told
    rest = np.clip(1 - told.sum(axis=1, keepdims=True), 0, None)
    total = np.maximum(means[:, count:].sum(axis=1, keepdims=True), 1e-9)
    guesses[:, count:] = means[:, count:] * rest / total
    return guesses
