"""Many users' personalisation rounds at once over the one frozen backbone, on the network's device (Sec. 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from persephonee.clients.errors import NonFiniteLossError
from persephonee.clients.personalisation.exit_shifts import class_shifts, with_last_shift
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.feature_cache import FeatureCache, embed, fill_cache
from persephonee.clients.personalisation.labels import usable_labels
from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.starting_exits import StartingExits, starting_exits
from persephonee.clients.personalisation.training.batched_training import ExitOfUser, train_exit_of_users
from persephonee.clients.personalisation.training.exit_training import epoch_orders
from persephonee.clients.personalisation.training.fast_training import add_to_classifiers, classify
from persephonee.clients.personalisation.training.linear_fit import solve
from persephonee.clients.personalisation.training.schedules import TrainedExits, train
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.seeds import torch_generator
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.exit_weights import as_arrays, exit_weights_of
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import UNLABELLED


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchUser:
    """One user: the samples, how they are split, and the store, as `personalise` takes them."""

    samples: UserSamples
    split: SampleSplit
    store: ExitStore | None = None


def personalise_batch(
    network: MultiExitNetwork,
    users: Sequence[BatchUser],
    settings: PersonalisationSettings,
    *,
    round_number: int = 1,
    seed: int = 0,
    features: FeatureCache | None = None,
) -> list[Personalisation]:
    """Return what `personalise` returns for each user, within the rounding of float32.

    Args:
        network: the global model; its device is where all is computed.
        users: whose features together fit into memory, whatever settings.memory_budget says; users of like sizes
            waste the least padding.
        settings: of the round, for all.
        round_number: from 1.
        seed: with client id and round it determines the result.
        features: of all users' images, one user after the other; None computes them.

    Raises:
        NonFiniteLossError: somebody's training diverged; nobody's round is stored.
        ClientError: as `personalise`.
    """
    network.freeze_backbone()
    whole = features or fill_cache(network, np.concatenate([user.samples.images for user in users]))
    sizes = [len(user.samples) for user in users]
    logits = whole.last_logits.split(sizes)
    maps = zip(*(cast(Tensor, one).split(sizes) for one in whole.maps), strict=True)
    caches = [
        FeatureCache(maps=own, last_logits=last, heads=network.heads) for own, last in zip(maps, logits, strict=True)
    ]
    exits = [starting_exits(network, user.samples.client_id, user.store) for user in users]
    labels = [usable_labels(user.samples, user.split, settings) for user in users]
    shifts = [
        class_shifts(network, cache, own_labels, user.split, settings, seed, user.samples.client_id, round_number)
        for user, cache, own_labels in zip(users, caches, labels, strict=True)
    ]
    exits = [replace(one, shifts=own) for one, own in zip(exits, shifts, strict=True)]
    teachers = [with_last_shift(cache, own[-1]) for cache, own in zip(caches, shifts, strict=True)]
    if not settings.weights.is_learning:
        trained = [
            train(one, cache, own_labels, user.split, settings, torch.Generator)
            for user, one, cache, own_labels in zip(users, exits, teachers, labels, strict=True)
        ]
    elif settings.schedule == "fast":
        trained = _fit(network, users, exits, whole, teachers, labels, settings)
    else:
        orders = [
            epoch_orders(
                torch.as_tensor(user.split.train),
                settings,
                torch_generator(seed, user.samples.client_id, round_number, "exit training"),
            )
            for user in users
        ]
        trained = _train(users, exits, teachers, labels, orders, settings)
    for user, one in zip(users, trained, strict=True):
        if not all(np.isfinite(array).all() for array in one.exits.values()):
            raise NonFiniteLossError(
                f"the training of user {user.samples.client_id!r} diverged: the round is refused and the previous "
                f"exits stay; use a learning rate below {settings.learning_rate}."
            )
    return [
        personalise(
            network,
            user.samples,
            user.split,
            settings,
            store=user.store,
            round_number=round_number,
            seed=seed,
            features=cache,
            shifts=own_shifts,
            trained=one,
        )
        for user, cache, own_shifts, one in zip(users, caches, shifts, trained, strict=True)
    ]


def _train(
    users: Sequence[BatchUser],
    exits: Sequence[StartingExits],
    caches: Sequence[FeatureCache],
    labels: Sequence[NDArray[np.int64]],
    orders: Sequence[list[Tensor]],
    settings: PersonalisationSettings,
) -> list[TrainedExits]:
    device = caches[0].last_logits.device
    heads = [cache.heads_with(one.start).requires_grad_(True) for one, cache in zip(exits, caches, strict=True)]
    anchors = [cache.heads_with(one.anchor) for one, cache in zip(exits, caches, strict=True)]
    for exit in range(len(heads[0])):
        members = [
            ExitOfUser(
                head=trained[exit],
                maps=cast(Tensor, cache.maps[exit]),
                last_logits=cache.last_logits,
                labels=torch.as_tensor(own_labels).to(device),
                orders=[order.to(device) for order in own_orders],
                anchor=anchor[exit],
            )
            for trained, anchor, cache, own_labels, own_orders in zip(
                heads, anchors, caches, labels, orders, strict=True
            )
        ]
        train_exit_of_users(members, settings)
    return [
        TrainedExits(
            exits=as_arrays(exit_weights_of(trained)),
            start_logits=cache.exit_logits(one.start, user.split.judged),
            logits=cache.exit_logits(trained, user.split.judged),
        )
        for user, trained, one, cache in zip(users, heads, exits, caches, strict=True)
    ]


def _embedded(
    network: MultiExitNetwork, exits: Sequence[StartingExits], whole: FeatureCache, caches: Sequence[FeatureCache]
) -> list[tuple[Tensor, ...]]:
    """Return what each user's classifiers take; those who start from the global exits share one pass."""
    sizes = [len(cache.last_logits) for cache in caches]
    shared = embed(network.heads, whole) if any(one.start_is_global for one in exits) else None
    pieces = list(zip(*(rows.split(sizes) for rows in shared), strict=True)) if shared else [()] * len(exits)
    return [
        piece if one.start_is_global else embed(cache.heads_with(one.start), cache)
        for one, cache, piece in zip(exits, caches, pieces, strict=True)
    ]


def _fit(
    network: MultiExitNetwork,
    users: Sequence[BatchUser],
    exits: Sequence[StartingExits],
    whole: FeatureCache,
    caches: Sequence[FeatureCache],
    labels: Sequence[NDArray[np.int64]],
    settings: PersonalisationSettings,
) -> list[TrainedExits]:
    embedded = _embedded(network, exits, whole, caches)
    train = [user.split.train for user in users]
    rows = [[one[chosen] for one in own] for own, chosen in zip(embedded, train, strict=True)]
    num_exits, device = len(rows[0]), caches[0].last_logits.device
    last_logits = _padded([cache.last_logits[chosen] for cache, chosen in zip(caches, train, strict=True)], num_exits)
    given = [torch.as_tensor(one[chosen]).to(device) for one, chosen in zip(labels, train, strict=True)]
    starts = [cache.heads_with(one.start) for one, cache in zip(exits, caches, strict=True)]
    early = [classify(start, own) for start, own in zip(starts, rows, strict=True)]
    logits = pad_sequence([exit for own in early for exit in own], batch_first=True)
    grams = torch.stack([_padded_gram(one, logits.shape[1]) for own in rows for one in own])
    found = solve(torch, grams, logits, last_logits, _padded(given, num_exits, UNLABELLED), settings.weights)
    results = []
    for user, start, own, chosen, coefficients in zip(
        users, starts, embedded, rows, found.unflatten(0, (len(users), num_exits)), strict=True
    ):
        judged = [exit[user.split.judged] for exit in own]
        before = classify(start, judged)
        add_to_classifiers(start, chosen, coefficients[:, : len(chosen[0])])
        results.append(
            TrainedExits(
                exits=as_arrays(exit_weights_of(start)),
                start_logits=before.cpu().numpy(),
                logits=classify(start, judged).cpu().numpy(),
            )
        )
    return results


def _padded(tensors: list[Tensor], num_exits: int, value: float = 0) -> Tensor:
    """Return [U * M, n, ...]: each user's tensor, once for each exit."""
    return pad_sequence(tensors, batch_first=True, padding_value=value).repeat_interleave(num_exits, dim=0)


def _padded_gram(rows: Tensor, size: int) -> Tensor:
    rows = torch.nn.functional.pad(rows, (0, 0, 0, size - len(rows)))
    return rows @ rows.T
