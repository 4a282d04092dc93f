"""What personal exits forget, and what else a user's samples could have personalised.

    python -m persephonee.experiments.forgetting MODEL [DATA] --users 20 --labels all

For users whom the model has not seen, a row per way to personalise: the accuracy on the user's own test samples, on
those of the other users, and on those of the others whose class the user's training samples lack; each as the mean of
the early exits, raw, without the guard and without the user's class frequencies, and under the policy that the round
chose, with all of them. The first row is before training.

Below them stand the baselines of `last_exit_baselines.py`, which have no policy.
"""

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.evaluation import ExitOutputs, apply_policy, run_exits
from persephonee.clients.personalisation.exit_shifts import with_last_shift
from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.risk.policy_choice import choose_policy
from persephonee.clients.personalisation.risk.risk_pools import BEFORE
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import DEFAULT_SOURCES, Sources, data_settings, schedule_settings, source_names
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import UserSamples, to_float
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, choose_users, split_samples
from persephonee.experiments.last_exit_baselines import (
    Scores,
    classifier_of,
    fine_tuned,
    last_exit_baselines,
    penultimate_of,
)
from persephonee.experiments.studies.development import development_users
from persephonee.fl_app.settings.run_config import parse_labels
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.exit_weights import load_exit_weights
from persephonee.multi_exit.losses import UNLABELLED
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network

OTHERS_SAMPLES = 20
"""Test samples of each other user."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _User:
    """A user of the study: samples, their division, and the features that serve every way."""

    samples: UserSamples
    split: SampleSplit
    features: FeatureCache
    penultimate: Tensor
    """What the last exit's classifier takes, shape [N, D]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """Features, labels and what the classifier takes of samples that judge a way."""

    features: FeatureCache
    penultimate: Tensor
    labels: Tensor
    chosen: Tensor
    images: Tensor
    """uint8 [n, C, H, W], for a network of another backbone."""


@with_groups(data=data_settings, schedule=schedule_settings)
def main(
    model: Annotated[Path, typer.Argument(help="Folder of the global model.")],
    *,
    data: DataSettings,
    schedule: PersonalisationSettings,
    users: Annotated[int, typer.Option(help="Users, at least 2; those with too few samples are left out.", min=2)] = 20,
    labels: Annotated[str, typer.Option(help="all, none or a fraction.")] = "all",
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="Fine-tune the whole network too, which takes long.")
    ] = (False),
    development: Annotated[bool, typer.Option("--development", help="Development users, not the figures'.")] = False,
    sources: Sources = DEFAULT_SOURCES,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    labelled = parse_labels(labels)
    network, metadata = load_network(model, source_names(sources))
    network.freeze_backbone()
    partitions = open_fitting(data, network, metadata, source_names(sources))
    ids = partitions.client_ids
    choose = development_users if development else lambda ids, out, count: choose_users(ids, count, 0, exclude=out)
    everyone = []
    for name in choose(ids, metadata.trained_on, users):
        samples = partitions.load_partition(ids.index(name))
        try:
            split = split_samples(samples, SplitSettings(labels=labelled), 0)
        except UserTooSmallError:
            continue
        everyone.append(_prepared(network, samples, split))
    if len(everyone) < 2:
        raise ClientSettingsError(
            f"fewer than two users of {partitions.name} have samples enough: ask for more --users."
        )
    settings = replace(schedule, weights=loss_weights("auto", labelled))
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for index, user in enumerate(everyone):
        own = _Judged(
            features=user.features,
            penultimate=user.penultimate,
            labels=torch.from_numpy(user.samples.labels[user.split.test]),
            chosen=torch.from_numpy(user.split.test),
            images=torch.from_numpy(user.samples.images[user.split.test]),
        )
        others = [_few(other) for number, other in enumerate(everyone) if number != index]
        known = set(user.samples.labels[user.split.train].tolist())
        for name, row in _ways(network, user, own, others, known, settings, fine_tune=fine_tune).items():
            rows[name].append(row)
    _show(rows, len(everyone), labels)


def _prepared(network: MultiExitNetwork, samples: UserSamples, split: SampleSplit) -> _User:
    return _User(
        samples=samples,
        split=split,
        features=compute_features(network, samples.images),
        penultimate=penultimate_of(network, torch.from_numpy(samples.images)),
    )


def _few(user: _User) -> _Judged:
    chosen = torch.from_numpy(user.split.test[:OTHERS_SAMPLES])
    return _Judged(
        features=user.features,
        penultimate=user.penultimate,
        labels=torch.from_numpy(user.samples.labels)[chosen],
        chosen=chosen,
        images=torch.from_numpy(user.samples.images)[chosen],
    )


def _ways(
    network: MultiExitNetwork,
    user: _User,
    own: _Judged,
    others: list[_Judged],
    known: set[int],
    settings: PersonalisationSettings,
    *,
    fine_tune: bool,
) -> dict[str, list[float]]:
    """Return a row for each way: own, others', unknown classes, first raw and then under the policy, and the cost."""
    result = personalise(network, user.samples, user.split, settings, features=user.features)
    trained, deployed = copy.deepcopy(network.heads), copy.deepcopy(network.heads)
    load_exit_weights(trained, result.trained)
    load_exit_weights(deployed, result.exit_weights)
    before = _policy_before(network, user, result, settings)
    found = {
        "before": _row(network, own, others, known, network.heads, network.heads, before),
        "personal exits": _row(network, own, others, known, trained, deployed, result.policy, result.shifts),
    }
    usable = user.split.train[user.split.labelled[user.split.train]]
    if not len(usable):
        return found
    taught = user.penultimate[usable], user.features.last_logits[usable], torch.from_numpy(user.samples.labels[usable])
    for name, scores in last_exit_baselines(classifier_of(network), *taught).items():

        def answer(judged: _Judged, scores: Scores = scores) -> Tensor:
            logits = judged.features.last_logits[judged.chosen]
            return scores(judged.penultimate[judged.chosen], logits).argmax(dim=1)

        found[name] = [*_accuracies(answer, own, others, known), *(3 * [math.nan]), 1.0]
    if fine_tune:
        images = torch.from_numpy(user.samples.images[usable])
        whole = fine_tuned(network, images, taught[2], settings.epochs)
        whole_network = _accuracies(lambda judged: whole(to_float(judged.images)).argmax(dim=1), own, others, known)
        found["whole, fine-tuned"] = [*whole_network, *(3 * [math.nan]), 1.0]
    return found


def _policy_before(
    network: MultiExitNetwork, user: _User, result: Personalisation, settings: PersonalisationSettings
) -> ExitPolicy:
    usable = np.where(user.split.labelled, user.samples.labels, UNLABELLED)[user.split.calibration]
    return choose_policy(
        result.outputs_before.calibration,
        usable,
        network.costs.leaving_macs,
        settings,
        calibration=network.calibration,
        shipped=network.risk_pools,
        stage=BEFORE,
    ).policy


def _row(
    network: MultiExitNetwork,
    own: _Judged,
    others: list[_Judged],
    known: set[int],
    raw: nn.ModuleList,
    deployed: nn.ModuleList,
    policy: ExitPolicy,
    shifts: NDArray[np.float32] | None = None,
) -> list[float]:
    # the early exits in force carry the user's class frequencies in their biases, the last exit beside it
    last_shift = None if shifts is None else shifts[-1]

    def early(judged: _Judged) -> Tensor:
        # all early exits' answers, so that the mean over them is the mean accuracy
        return torch.from_numpy(_outputs(raw, judged).predictions[:-1])

    def under_policy(judged: _Judged) -> Tensor:
        outputs = _outputs(deployed, judged, last_shift)
        exits = policy.exit_of(outputs.confidences)
        return torch.from_numpy(outputs.predictions[exits, np.arange(len(exits))])

    cost = apply_policy(_outputs(deployed, own, last_shift), policy, own.labels.numpy(), network.costs).mean_macs
    return [
        *_accuracies(early, own, others, known),
        *_accuracies(under_policy, own, others, known),
        cost / network.costs.original_macs,
    ]


def _outputs(heads: nn.ModuleList, judged: _Judged, last_shift: NDArray[np.float32] | None = None) -> ExitOutputs:
    return run_exits(heads, with_last_shift(judged.features, last_shift), judged.chosen)


def _accuracies(
    answer: Callable[[_Judged], Tensor], own: _Judged, others: list[_Judged], known: set[int]
) -> tuple[float, float, float]:
    """Return the accuracy on the user's own samples, on the others', and on those of the others' unknown classes."""
    mine = float((answer(own) == own.labels).float().mean())
    # [exits, n] or [n] answers: for each sample the fraction of them that is right
    right = torch.cat([(answer(o) == o.labels).float().reshape(-1, len(o.labels)).mean(dim=0) for o in others])
    is_new = torch.tensor([int(label) not in known for label in torch.cat([other.labels for other in others])])
    return mine, float(right.mean()), float(right[is_new].mean()) if bool(is_new.any()) else float("nan")


def _show(rows: dict[str, list[list[float]]], users: int, labels: str) -> None:
    print(f"{users} users, labels {labels}; accuracy in %: raw (mean of the early exits), then under the policy")
    print(f"{'':22}{'own':>8}{'others':>8}{'unknown':>9} |{'own':>8}{'others':>8}{'unknown':>9} |{'MACs':>7}")
    for name, found in rows.items():
        with warnings.catch_warnings():
            # a user who knows all classes has no accuracy on others, and a baseline none under a policy
            warnings.simplefilter("ignore", RuntimeWarning)
            own, others, new, *policy, cost = 100 * np.nanmean(np.array(found), axis=0)
        raw = f"{own:8.2f}{others:8.2f}{new:9.2f}"
        under = "".join(f"{value:{width}.2f}" for value, width in zip(policy, (8, 8, 9), strict=True))
        print(f"{name:22}{raw} |{under} |{cost:6.1f}%")


if __name__ == "__main__":
    run_program(main)
