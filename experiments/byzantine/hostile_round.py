"""A round with hostile clients: what each could send, what those that attack send, and what the merge is worth."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import Partitions, UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples
from persephonee.experiments.byzantine.attacks import ATTACKS, FALSE_COUNT
from persephonee.fl_app.server_side.aggregation import Contribution
from persephonee.fl_app.settings.sharing_settings import SharingSettings, Strategy
from persephonee.fl_app.wire.exit_arrays import ExitArrays, ExitLayout, exit_of
from persephonee.multi_exit.exit_weights import as_arrays, load_exit_weights
from persephonee.multi_exit.network import MultiExitNetwork

SEED = 0
FLIPPED = "flipped labels"
FALSE = ", false count"
HONEST = "none"
MIN_SAMPLES = 40


@dataclass(frozen=True, kw_only=True)
class Round:
    """What the clients of a round could send.

    Attributes:
        honest: for each client, what its training gave; exits may be missing.
        flipped: for each client, what training on flipped labels gave.
        whole: for each client, all exits that honest training gave.
    """

    honest: Sequence[Contribution]
    flipped: Sequence[Contribution]
    whole: Sequence[ExitArrays]


def strategies(hostile: int) -> Mapping[str, SharingSettings]:
    """Return the settings that are compared, by name; `hostile` is what krum and the trimmed mean are told."""

    def one(strategy: Strategy, **more: Any) -> SharingSettings:
        return SharingSettings(share_exits=True, strategy=strategy, **more)

    return {
        "fedavg without bounds": one("fedavg", clip_fraction=0.0, weight_cap=0.0),
        "fedavg": one("fedavg"),
        "fedadam": one("fedadam"),
        "fedyogi": one("fedyogi"),
        "fedmedian": one("fedmedian"),
        "fedtrimmedavg": one("fedtrimmedavg", trimmed_fraction=0.34),
        "krum": one("krum", malicious_clients=hostile),
    }


def users_apart(partitions: Partitions, seen: set[str], count: int) -> list[tuple[UserSamples, SampleSplit]]:
    """Return `count` users, or as many as there are, whom the model was not trained on, in an order of the seed."""
    ids, users = partitions.client_ids, []
    for index in np.random.default_rng(SEED).permutation([i for i in range(len(ids)) if ids[i] not in seen]):
        samples = partitions.load_partition(int(index))
        try:
            users.append((samples, split_samples(samples, SplitSettings(min_samples=MIN_SAMPLES), SEED)))
        except UserTooSmallError:
            continue
        if len(users) == count:
            break
    return users


def train_round(
    network: MultiExitNetwork,
    users: Sequence[tuple[UserSamples, SampleSplit]],
    epochs: int,
    features: Sequence[FeatureCache] = (),
    flipped: int | None = None,
) -> Round:
    """Let each user train the model's exits, honestly, and the first `flipped` also on flipped labels, by default all.

    Args:
        network: its exits are where training begins; its backbone is frozen.
        users: samples and parts.
        epochs: passes over a user's samples.
        features: of each user's samples, where they are known from an earlier round.
        flipped: how many.
    """
    layout, settings = ExitLayout.of(network, "float32"), PersonalisationSettings(epochs=epochs)
    made: dict[bool, list[Contribution]] = {False: [], True: []}
    whole = []
    for number, (samples, split) in enumerate(users):
        known = features[number] if features else compute_features(network, samples.images)
        for is_flipped in (False, True) if flipped is None or number < flipped else (False,):
            labels = network.num_classes - 1 - samples.labels if is_flipped else samples.labels
            taken = replace(samples, labels=labels)
            done = personalise(network, taken, split, settings, seed=SEED, features=known)
            arrays = layout.arrays(done.trained)
            # as an honest client sends them; a hostile one sends all
            sent = {name: a for name, a in arrays.items() if is_flipped or exit_of(name) not in done.worse}
            client = Contribution(client_id=samples.client_id, exits=sent, examples=len(split.train))
            made[is_flipped].append(client)
            if not is_flipped:
                whole.append(arrays)
    return Round(honest=made[False], flipped=made[True], whole=whole)


def sent_by(round: Round, start: ExitArrays, hostile: int, attack: str) -> list[Contribution]:
    """Return what arrives where the first `hostile` clients attack; with HONEST they do not."""
    if attack == HONEST:
        return list(round.honest)
    name = attack.removesuffix(FALSE)
    clients = list(round.honest)
    for number in range(hostile):
        own = clients[number]
        exits = round.flipped[number].exits if name == FLIPPED else ATTACKS[name](round.whole[number], start)
        clients[number] = replace(own, exits=exits, examples=FALSE_COUNT if attack.endswith(FALSE) else own.examples)
    return clients


class Judge:
    """Measures exits on the test parts of users who took no part."""

    def __init__(self, network: MultiExitNetwork, users: Sequence[tuple[UserSamples, SampleSplit]]) -> None:
        self._network = network
        self._layout = ExitLayout.of(network, "float32")
        images = np.concatenate([samples.images[split.test] for samples, split in users])
        self._truth = np.concatenate([samples.labels[split.test] for samples, split in users])
        self._features: FeatureCache = compute_features(network, images)

    def accuracy(self, arrays: ExitArrays) -> float:
        """Return the mean accuracy of the early exits, in [0, 1]."""
        heads = copy.deepcopy(self._network.heads)
        load_exit_weights(heads, self._layout.state(arrays, as_arrays(self._network.exit_state())))
        outputs = run_exits(heads, self._features, torch.arange(len(self._truth)))
        return float(outputs.accuracies(self._truth)[:-1].mean())
