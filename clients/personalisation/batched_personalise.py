"""Many users' personalisation rounds at once over the one frozen backbone, on the network's device (Sec. 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from persephonee.clients.errors import NonFiniteLossError
from persephonee.clients.personalisation.batched_training import ExitOfUser, train_exit_of_users
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.exit_training import epoch_orders
from persephonee.clients.personalisation.fast_training import add_to_classifiers, classify, embed, solve
from persephonee.clients.personalisation.features import FeatureCache, compute_features
from persephonee.clients.personalisation.personalisation_round import Personalisation, PersonalisationRound
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.network import MultiExitNetwork


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
) -> list[Personalisation]:
    """Return what `personalise` returns for each user, within the rounding of float32.

    Args:
        network: the global model; its device is where all is computed.
        users: whose features together fit into memory, whatever settings.memory_budget says; users of like sizes
            waste the least padding.
        settings: of the round, for all.
        round_number: from 1.
        seed: with client id and round it determines the result.

    Raises:
        NonFiniteLossError: somebody's training diverged; nobody's round is stored.
        ClientError: as `personalise`.
    """
    rounds = [
        PersonalisationRound(
            network,
            user.samples,
            user.split,
            settings,
            store=user.store,
            round_number=round_number,
            seed=seed,
            global_exit_weights=None,
            run="",
        )
        for user in users
    ]
    whole = compute_features(network, torch.cat([user.samples.images for user in users]))
    sizes = [len(user.samples) for user in users]
    logits = whole.last_logits.split(sizes)
    maps = zip(*(cast(Tensor, one).split(sizes) for one in whole.maps), strict=True)
    caches = [FeatureCache(maps=own, last_logits=last) for own, last in zip(maps, logits, strict=True)]
    embedded: list[tuple[Tensor, ...]] | list[None] = [None] * len(users)
    if settings.schedule == "fast":
        embedded = _embedded(network, whole, rounds, caches)
        _fit(users, rounds, caches, embedded, settings)
    else:
        _train(users, rounds, caches, settings)
    for user, one in zip(users, rounds, strict=True):
        if not all(torch.isfinite(parameter).all() for parameter in one.heads.parameters()):
            raise NonFiniteLossError(
                f"the training of user {user.samples.client_id!r} diverged: the round is refused and the previous "
                f"exits stay; use a learning rate below {settings.learning_rate}."
            )
    return [one.finish(cache, rows) for one, cache, rows in zip(rounds, caches, embedded, strict=True)]


def _train(
    users: Sequence[BatchUser],
    rounds: Sequence[PersonalisationRound],
    caches: Sequence[FeatureCache],
    settings: PersonalisationSettings,
) -> None:
    orders = [epoch_orders(user.split.train, settings, one.generator) for user, one in zip(users, rounds, strict=True)]
    for exit in range(len(rounds[0].heads)):
        exits = [
            ExitOfUser(
                head=one.heads[exit],
                maps=cast(Tensor, cache.maps[exit]),
                last_logits=cache.last_logits,
                labels=one.labels.to(cache.last_logits.device),
                orders=[order.to(cache.last_logits.device) for order in own],
                anchor=one.global_heads[exit],
            )
            for one, cache, own in zip(rounds, caches, orders, strict=True)
        ]
        train_exit_of_users(exits, settings)


def _embedded(
    network: MultiExitNetwork,
    whole: FeatureCache,
    rounds: Sequence[PersonalisationRound],
    caches: Sequence[FeatureCache],
) -> list[tuple[Tensor, ...]]:
    """Return what each user's classifiers take; those who start from the global exits share one pass."""
    sizes = [len(cache.last_logits) for cache in caches]
    shared = embed(network.heads, whole) if any(one.start is network.heads for one in rounds) else None
    pieces = list(zip(*(rows.split(sizes) for rows in shared), strict=True)) if shared else [()] * len(rounds)
    return [
        piece if one.start is network.heads else embed(one.start, cache)
        for one, cache, piece in zip(rounds, caches, pieces, strict=True)
    ]


def _fit(
    users: Sequence[BatchUser],
    rounds: Sequence[PersonalisationRound],
    caches: Sequence[FeatureCache],
    embedded: Sequence[tuple[Tensor, ...]],
    settings: PersonalisationSettings,
) -> None:
    train = [user.split.train for user in users]
    rows = [[one[chosen] for one in own] for own, chosen in zip(embedded, train, strict=True)]
    exits, device = len(rows[0]), caches[0].last_logits.device

    def padded(tensors: list[Tensor], value: float = 0) -> Tensor:
        """Return [U * M, n, ...]: each user's tensor, once for each exit."""
        return pad_sequence(tensors, batch_first=True, padding_value=value).repeat_interleave(exits, dim=0)

    last_logits = padded([cache.last_logits[chosen] for cache, chosen in zip(caches, train, strict=True)])
    labels = padded([one.labels[chosen].to(device) for one, chosen in zip(rounds, train, strict=True)], -1)
    early = [classify(one.heads, own) for one, own in zip(rounds, rows, strict=True)]
    logits = pad_sequence([exit for own in early for exit in own], batch_first=True)
    longest = logits.shape[1]
    grams = torch.stack([_padded_gram(one, longest) for own in rows for one in own])
    found = solve(grams, logits, last_logits, labels, settings.weights).unflatten(0, (len(users), exits))
    for one, own, coefficients in zip(rounds, rows, found, strict=True):
        add_to_classifiers(one.heads, own, coefficients[:, : len(own[0])])


def _padded_gram(rows: Tensor, size: int) -> Tensor:
    rows = torch.nn.functional.pad(rows, (0, 0, 0, size - len(rows)))
    return rows @ rows.T
