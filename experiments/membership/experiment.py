r"""Can somebody who sees what leaves a client tell whether a sample was among those that the client trained on?

    python -m persephonee.experiments.membership.experiment --model models/writers --name writers \
        --out runs/membership --page docs/privacy.md

The game, for each of several users whom the model never saw: half of the user's training samples, drawn at random,
train the exits, and the attacker, who has all of these samples, guesses which half each one is from. What is released
is the report (metrics only), the trained exits, or the exits clipped and with noise, as a client of this app sends
them. The attacks are those of `membership_attacks.py`; LiRA's shadows are trained on other random halves, so it is an
attacker who knows the user's samples as no real one does.

Beside that, label inference: what the figures say about how frequent each class is, as labels.py has it.

Writes `membership-DATA.csv` (a row per release and attack) and the figure.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.evaluation import ExitOutputs, exit_metrics, run_exits
from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.reports import Stage
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.training.exit_training import train_exits
from persephonee.commands.options import numbers_of
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import Dataset, DataSettings
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.experiments.membership.attacks import (
    Booleans,
    Floats,
    calibrated_scores,
    likelihood_ratio_scores,
    logit_confidence,
    loss_scores,
)
from persephonee.experiments.membership.figure import draw_attacks, markdown, summarise
from persephonee.experiments.membership.labels import infer_labels, label_markdown
from persephonee.experiments.meta_learning.experiment import held_out_users
from persephonee.experiments.results_page.page_marks import check_marks, put_between
from persephonee.fl_app.client_side.coarse_report import coarse_exit, step_for
from persephonee.fl_app.settings.sharing_settings import PrivacySettings
from persephonee.fl_app.wire.differential_privacy import clipped
from persephonee.fl_app.wire.exit_arrays import ExitLayout
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.atomic_files import check_writable, write_text_atomically
from persephonee.multi_exit.costs import CostTable
from persephonee.multi_exit.exit_weights import ExitWeights, exit_weights_of, load_exit_weights
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network
from persephonee.server.report.figure_style import figure_style, save_figure

SEED = 0
METRICS_ONLY, SHARED = "metrics only", "exits"
ROUNDED = "metrics, rounded"
"""What leaves a device that shares nothing: accuracy, loss and exit rate of each early exit, in steps."""
THRESHOLD = 0.8
"""Of the policy that the exit rates are of."""


@dataclass(frozen=True, eq=False)
class Release:
    """What leaves a client, as the attacker measures it.

    Attributes:
        exits: the exits' log probabilities of the true classes, shape [E, N].
        report: the report's losses on the test part, shape [E].
        rounded: accuracies, losses and exit rates on the test part as a device rounds them, shape [3 E].
        accuracy: mean over the early exits, on the test part.
    """

    exits: Floats
    report: Floats
    rounded: Floats
    accuracy: float


class Victim:
    """One user: samples, features, and exits trained on any part of them."""

    def __init__(self, network: MultiExitNetwork, samples: UserSamples, split: SampleSplit, epochs: int) -> None:
        self.network = network
        self.pool = torch.as_tensor(split.train)
        self._test = torch.as_tensor(split.test)
        self._labels = torch.as_tensor(samples.labels)
        self._features: FeatureCache = compute_features(network, samples.images)
        self._settings = PersonalisationSettings(epochs=epochs)

    def train(self, members: Booleans, seed: int) -> dict[str, Tensor]:
        """Return exits trained on the members of the pool."""
        heads = copy.deepcopy(self.network.heads).requires_grad_(True)
        chosen = self.pool[torch.from_numpy(members)]
        train_exits(heads, self._features, self._labels, chosen, self._settings, torch.Generator().manual_seed(seed))
        return exit_weights_of(heads)

    def release(self, exits: Mapping[str, Tensor] | ExitWeights) -> Release:
        """Return what an attacker who has these exits and their report can measure."""
        heads = copy.deepcopy(self.network.heads)
        load_exit_weights(heads, exits)
        tested = run_exits(heads.eval(), self._features, self._test)
        truth = self._labels[self._test]
        return Release(
            exits=self._log_probabilities(heads),
            report=tested.losses(truth)[:-1],
            rounded=rounded_figures(tested, truth.numpy(), self.network.costs),
            accuracy=float(tested.accuracies(truth)[:-1].mean()),
        )

    def _log_probabilities(self, heads: nn.ModuleList) -> Floats:
        logits = torch.as_tensor(run_exits(heads, self._features, self.pool).logits[:-1]).double()
        truth = self._labels[self.pool].expand(len(logits), -1)
        return functional.log_softmax(logits, dim=2).gather(2, truth.unsqueeze(2)).squeeze(2).numpy()


def rounded_figures(tested: ExitOutputs, truth: NDArray[np.int64], costs: CostTable) -> Floats:
    """Return what a metrics-only device says of its early exits on a test part [N]: 3 E figures in steps."""
    last = len(costs.exit_costs) - 1
    policy = ExitPolicy(threshold=THRESHOLD, exits_in_use=tuple(range(last)), num_exits=last)
    measured = exit_metrics(tested, policy, truth, costs, Stage.AFTER)[:-1]
    coarse = [coarse_exit(exit, step_for(len(truth))) for exit in measured]
    return np.array([value for exit in coarse for value in (exit.accuracy, exit.loss, exit.exit_rate)])


def halves(count: int, pairs: int, generator: np.random.Generator) -> Booleans:
    """Return 2 * pairs random halves of `count` samples, shape [2 * pairs, count]; each pair are complements."""
    rows = []
    for _ in range(pairs):
        half = np.zeros(count, dtype=np.bool_)
        half[generator.permutation(count)[: count // 2]] = True
        rows += [half, ~half]
    return np.stack(rows)


def protected(
    exits: Mapping[str, Tensor], network: MultiExitNetwork, privacy: PrivacySettings, generator: np.random.Generator
) -> ExitWeights:
    """Return exits clipped and with noise, as a client sends them with dp-noise-at=clients; here from a seed."""
    layout, start = ExitLayout.of(network, "float32"), network.exit_state()
    arrays = clipped(layout.arrays(exits), layout.arrays(start), privacy)
    scale = privacy.dp_noise_multiplier * privacy.dp_clipping_norm
    noisy = {
        name: array + scale * generator.standard_normal(array.shape, dtype=np.float32) for name, array in arrays.items()
    }
    return layout.state(noisy, start)


def attack_user(
    victim: Victim, user: str, pairs: int, privacies: Sequence[PrivacySettings], generator: np.random.Generator
) -> list[dict[str, Any]]:
    """Return a row for each release, attack and sample: its score, and whether it was a member."""
    count = len(victim.pool)
    members = halves(count, pairs, generator)
    trained = [victim.train(half, seed) for seed, half in enumerate(members)]
    target_members = halves(count, 1, generator)[0]
    target = victim.train(target_members, len(members))
    base = victim.release(victim.network.exit_state())
    rows: list[dict[str, Any]] = []

    def note(release: str, accuracy: float, **scores: Floats) -> None:
        for attack, values in scores.items():
            own = {"user": user, "release": release, "attack": attack, "accuracy": accuracy}
            each = zip(values, target_members, strict=True)
            rows.extend({**own, "score": float(score), "member": bool(member)} for score, member in each)

    def of_exits(release: str, seen: Release, shadows: Sequence[Release]) -> None:
        statistics = np.stack([logit_confidence(shadow.exits) for shadow in shadows])
        note(
            release,
            seen.accuracy,
            loss=loss_scores(-seen.exits),
            calibrated=calibrated_scores(-seen.exits, -base.exits),
            LiRA=likelihood_ratio_scores(logit_confidence(seen.exits), statistics, members),
        )

    seen, shadows = victim.release(target), [victim.release(exits) for exits in trained]
    reports = np.stack([shadow.report for shadow in shadows])[:, :, None]
    # who has no exits but the global ones knows how difficult a sample is, and what the report says
    note(
        METRICS_ONLY,
        seen.accuracy,
        loss=loss_scores(-base.exits),
        LiRA=likelihood_ratio_scores(seen.report[:, None], reports, members),
    )
    sent = np.stack([shadow.rounded for shadow in shadows])[:, :, None]
    note(ROUNDED, seen.accuracy, LiRA=likelihood_ratio_scores(seen.rounded[:, None], sent, members))
    of_exits(SHARED, seen, shadows)
    for privacy in privacies:
        z = privacy.dp_noise_multiplier
        name = f"exits, z = {z:g}" if z else "clipped exits"
        noisy = [victim.release(protected(exits, victim.network, privacy, generator)) for exits in (target, *trained)]
        of_exits(name, noisy[0], noisy[1:])
    return rows


def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder for the table and the figure.")],
    dataset: Annotated[Dataset, typer.Option(help="As for the verbs of the command line.")] = "synthetic-writers",
    data_path: Annotated[Path | None, typer.Option(help="Where the data lies, if it is local.")] = None,
    users: Annotated[int, typer.Option(help="Users to attack.", min=1)] = 10,
    shadow_pairs: Annotated[int, typer.Option(help="Pairs of shadow models per user.", min=2)] = 4,
    epochs: Annotated[int, typer.Option(help="Passes over the user's samples.", min=1)] = 10,
    noise: Annotated[str, typer.Option(help="Noise multipliers z, with commas.")] = "0,0.001,0.003,0.01,0.1",
    clipping_norm: Annotated[float, typer.Option(help="L2 norm that a change is clipped to.")] = 1.0,
    name: Annotated[str, typer.Option(help="Of the data, in the files' names; the data set's by default.")] = "",
    label_users: Annotated[int, typer.Option(help="Users whose class frequencies are guessed.", min=1)] = 40,
    page: Annotated[Path | None, typer.Option(help="A page with marks for the table, such as docs/privacy.md.")] = None,
) -> None:
    """Attack, draw and print."""
    torch.set_num_threads(1)
    file = f"membership-{name or dataset}"
    privacies = [
        PrivacySettings(dp_noise_multiplier=z, dp_clipping_norm=clipping_norm, dp_noise_at="clients")
        for z in numbers_of("noise", noise)
    ]
    check_writable(out)
    if page is not None:
        check_marks(page, file)
    network, metadata = load_network(model)
    network.freeze_backbone()
    partitions = open_fitting(DataSettings(dataset=dataset, data_path=data_path), network, metadata)
    rows: list[dict[str, Any]] = []
    chosen = held_out_users(partitions, set(metadata.trained_on), users)
    if not chosen:
        raise ClientSettingsError(f"no user of {partitions.name} is held-out and large enough: take other data.")
    for number, (samples, split) in enumerate(track(chosen, "users", console=Console(stderr=True))):
        victim = Victim(network, samples, split, epochs)
        rows += attack_user(victim, samples.client_id, shadow_pairs, privacies, np.random.default_rng([SEED, number]))
    table = summarise(pd.DataFrame(rows))
    write_text_atomically(out / f"{file}.csv", table.to_csv(index=False, float_format="%.5f"))
    with figure_style():
        title = f"{name or dataset}, {len(chosen)} users, clipping norm {clipping_norm:g}"
        save_figure(draw_attacks(table, title), out, file)
    guessed = held_out_users(partitions, set(metadata.trained_on), label_users)
    text = f"{markdown(table)}\n\n{label_markdown(infer_labels(network, guessed, rounded_figures))}"
    Console().print(text, soft_wrap=True, highlight=False, markup=False)
    if page is not None:
        put_between(page, file, text)


if __name__ == "__main__":
    run_program(main)
