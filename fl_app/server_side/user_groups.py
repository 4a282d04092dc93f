"""Held-out users, all labelled, in groups that personalise together on a GPU."""

import logging
import math
from collections.abc import Iterator, Sequence

from persephonee.clients.personalisation.batched_personalise import BatchUser
from persephonee.clients.personalisation.risk.risk_curves import FEWEST_SAMPLES
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.network import MultiExitNetwork

GROUP_USERS = 64
"""At most so many users personalise together on a GPU."""

WAITING_USERS = 4 * GROUP_USERS
"""So many users are sorted by size at a time."""

GROUP_BYTES = 8 * 2**30
"""A group takes about so much of a GPU's memory."""

UNFOLDED = 27
"""A convolution of 3 x 3 as a product takes nine times its maps, and its gradient about as much twice more."""

log = logging.getLogger("persephonee.calibrate")


def with_split(partitions: Partitions, user: str) -> BatchUser | None:
    """Return a user's samples, all labelled, and how they are split; None where they are too few."""
    samples = partitions.load_partition(partitions.client_ids.index(user))
    try:
        # nobody looks at a held-out user's near-duplicates, and to look for them takes a while
        split = split_samples(samples, SplitSettings(labels=1.0), seed=0, names_near_duplicates=False)
    except UserTooSmallError as error:
        log.info("Left out: %s", error)
        return None
    return BatchUser(samples=samples, split=split) if len(split.judged) >= 2 * FEWEST_SAMPLES else None


def user_groups(network: MultiExitNetwork, partitions: Partitions, users: Sequence[str]) -> Iterator[list[BatchUser]]:
    """Yield users of like sizes, so many at a time as fit into the memory of the network's GPU; elsewhere one by one.

    Who has too few samples is left out. The images of a few groups are in memory at a time.
    """
    together = _is_on_gpu(network)
    waiting: list[BatchUser] = []
    for name in users:
        user = with_split(partitions, name)
        if user is not None:
            waiting.append(user)
        if waiting and (not together or len(waiting) == WAITING_USERS or _bytes_of(waiting) > GROUP_BYTES):
            yield from _fitting(network, waiting)
            waiting = []
    yield from _fitting(network, waiting)


def _is_on_gpu(network: MultiExitNetwork) -> bool:
    return next(network.parameters()).device.type != "cpu"


def _fitting(network: MultiExitNetwork, users: Sequence[BatchUser]) -> Iterator[list[BatchUser]]:
    maps = [4 * math.prod(shape) for shape in network.feature_shapes]
    group: list[BatchUser] = []
    room = 0
    for user in sorted(users, key=lambda user: len(user.samples)):
        # the features of all samples, and a batch's maps unfolded for a convolution, forwards and backwards
        needed = len(user.samples) * sum(maps) + PersonalisationSettings().batch_size * UNFOLDED * max(maps)
        if group and (needed > room or len(group) == GROUP_USERS):
            yield group
            group = []
        room = (room if group else GROUP_BYTES) - needed
        group.append(user)
    if group:
        yield group


def _bytes_of(users: Sequence[BatchUser]) -> int:
    return sum(user.samples.images.nbytes for user in users)
