"""The risk curves that ship with a model: users who trained nothing personalise in the same way as a device does.

Beside them, for a model that has none yet, the calibration of its exits (temperatures, biases, class frequencies).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from persephonee.clients.personalisation.batched_personalise import BatchUser, personalise_batch
from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.exit_shifts import class_prior
from persephonee.clients.personalisation.feature_cache import FeatureCache, fill_cache
from persephonee.clients.personalisation.features import features_of
from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.risk.risk_control import pool_curves
from persephonee.clients.personalisation.risk.risk_curves import (
    FEWEST_SAMPLES,
    RiskCurve,
    labelled_excess,
    own_excess,
    risk_curve,
)
from persephonee.clients.personalisation.risk.risk_pools import BEFORE, pool_name
from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule, loss_weights
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import choose_users, split_samples
from persephonee.multi_exit.exit_calibration import LEAST_GAIN
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import UNLABELLED
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from persephonee.server.training.exit_calibration_fit import fit_calibration
from persephonee.server.training.global_model_settings import UserFractions
from persephonee.server.training.training_samples import gather_samples

log = logging.getLogger("persephonee.calibrate")

PROMISES = tuple((tolerance, delta) for tolerance in (0.005, 0.01, 0.02, 0.03, 0.05) for delta in (0.05, 0.1, 0.2))
"""Pairs of a tolerance and delta for which a model's pools are certified; a device takes what fits its settings."""

CALIBRATED_ON = "calibrated_on"
"""Where the metadata's settings name the users that no validation saw and the pools did."""

GROUP_USERS = 64
"""Who personalise together on a GPU at most."""

WAITING_USERS = 4 * GROUP_USERS
"""Who are sorted by size at a time."""

GROUP_BYTES = 8 * 2**30
"""Of a GPU's memory that they take, about."""

UNFOLDED = 27
"""A convolution of 3 x 3 as a product takes nine times its maps, and its gradient about as much twice more."""

SECONDS_BETWEEN_LINES = 10.0

Told = Callable[[int, int], None]


class RemainingTime:
    """How far the users are, in words, and how long the others take."""

    def __init__(self) -> None:
        self._begun = self._said = time.monotonic()

    def words(self, done: int, of: int) -> str:
        """Return what there is to say once `done` of `of` users have personalised."""
        left = (time.monotonic() - self._begun) / done * (of - done)
        return f"{done} of {of} users, about {_duration(left)} more"

    def log_sometimes(self, logger: logging.Logger, done: int, of: int) -> None:
        """Log these words, every ten seconds at most."""
        if time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            logger.info(self.words(done, of))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Curves:
    """One user at one stage: what the device believes to lose, and what it loses in truth."""

    believed: RiskCurve
    lost: RiskCurve


def calibrate_model(
    folder: Path,
    partitions: Partitions,
    *,
    sources: tuple[str, ...],
    users: int,
    seed: int = 0,
    told: Told = lambda done, of: None,
    device: torch.device | None = None,
) -> tuple[MultiExitNetwork, ModelMetadata, int]:
    """Make the pools of the model in `folder`, and the calibration of its exits where it has none; save both with it.

    The weights and the fingerprint stay as they are. Users who validated the model come first, and then others, who
    count as seen by it from now on; as many as a pretraining keeps back to personalise are left.

    Args:
        folder: of a model.
        partitions: the data that it was trained on, all users.
        sources: where backbones may come from.
        users: how many at most.
        seed: decides which others.
        told: called with how many users are done.
        device: where it is computed; None takes the CPU.

    Returns:
        The network, on the CPU, what is known of it, and how many users its pools are of.

    Raises:
        MultiExitError: the folder holds no model.
        DataError: the data is broken.
        PretrainingError: no user is there to calibrate on.
    """
    network, metadata = load_network(folder, sources)
    network.to(device or "cpu")
    chosen, others = held_out_users(metadata, partitions, users, seed)
    if network.calibration is None:
        network.calibration = fit_calibration(network, gather_samples(partitions, chosen))
    found = prior_trials(network.freeze_backbone(), partitions, chosen)
    network.calibration = replace(network.calibration, least_gain=least_gain_of(found))
    network.risk_pools, count = make_pools(network, partitions, chosen, told)
    seen = [*metadata.settings.get(CALIBRATED_ON, ()), *others]
    metadata = replace(
        metadata,
        trained_on=tuple(sorted({*metadata.trained_on, *others})),
        settings={**metadata.settings, CALIBRATED_ON: sorted(set(seen))},
        calibration=network.calibration,
        risk_pools=network.risk_pools,
    )
    network.cpu()
    save_network(network, folder, metadata)
    return network, metadata, count


def held_out_users(
    metadata: ModelMetadata, partitions: Partitions, count: int, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return users that trained nothing, at most so many, and those of them that the model had not seen in any way."""
    known = (*metadata.settings.get("validated_on", ()), *metadata.settings.get(CALIBRATED_ON, ()))
    before = sorted(set(known) & set(partitions.client_ids))
    if len(before) >= count:
        return choose_users(before, count, seed), ()
    unseen = sorted(set(partitions.client_ids) - set(metadata.trained_on))
    kept_back = UserFractions(personal_users=metadata.settings.get("personal_users")).num_personal(
        len(partitions.client_ids)
    )
    more = min(count - len(before), len(unseen) - kept_back)
    others = choose_users(unseen, more, seed) if more > 0 else ()
    return (*before, *others), others


def prior_trials(network: MultiExitNetwork, partitions: Partitions, users: Sequence[str]) -> list[tuple[float, float]]:
    """Return of each held-out user for whom class frequencies are found without labels what they are worth.

    A pair is their gain in nats a sample, and by how much the last exit's accuracy rises with them on the other
    samples, in [-1, 1]. A user who writes another hand may look like one of other classes, and only labels tell.
    """
    calibration, found = network.calibration, []
    assert calibration is not None
    for name in users:
        user = _with_split(partitions, name)
        if user is None:
            continue
        features = features_of(network, user.samples.images)
        nobody = np.full(len(user.samples), UNLABELLED)
        prior = class_prior(replace(calibration, least_gain=LEAST_GAIN), features, nobody, user.split, 0, name, 1)
        if prior.is_shifted:
            raw, truth = features.last_exit_logits[user.split.judged], user.samples.labels[user.split.judged]
            with_prior = raw + calibration.temperatures[-1] * prior.shift
            change = (with_prior.argmax(axis=1) == truth).mean() - (raw.argmax(axis=1) == truth).mean()
            found.append((prior.gain, float(change)))
    return found


def least_gain_of(found: Sequence[tuple[float, float]]) -> float:
    """Return the smallest bound on the gain above which the users' accuracy rises on average, or nobody is left."""
    bounds = [LEAST_GAIN, *sorted(gain for gain, _ in found)]
    return next(bound for bound in bounds if sum(change for gain, change in found if gain > bound) >= 0)


def make_pools(
    network: MultiExitNetwork, partitions: Partitions, users: Sequence[str], told: Told = lambda done, of: None
) -> tuple[dict[str, Any], int]:
    """Return the pools of these users by name, and how many of the users had enough samples.

    On a GPU users of like size personalise together, elsewhere one after the other, which is faster there.
    """
    network.freeze_backbone()
    network.risk_pools = {}
    found: dict[str, dict[str, _Curves]] = {}
    for group in _groups(network, partitions, users):
        found.update(zip((user.samples.client_id for user in group), _of_group(network, group), strict=True))
        told(len(found), len(users))
    # in the order of the users, whatever the groups: sums depend on it
    curves_of = [found[name] for name in users if name in found]
    named: dict[str, list[_Curves]] = {}
    for curves in curves_of:
        for name, one in curves.items():
            named.setdefault(name, []).append(one)
    pools = {
        name: pool_curves(
            [one.believed for one in curves], "controlled", PROMISES, judged=[one.lost for one in curves]
        ).to_json()
        for name, curves in named.items()
        if len(curves) > 1
    }
    return pools, len(curves_of)


def _with_split(partitions: Partitions, user: str) -> BatchUser | None:
    """Return a user's samples, all labelled, and how they are split; None where they are too few."""
    samples = partitions.load_partition(partitions.client_ids.index(user))
    try:
        # nobody looks at a held-out user's near-duplicates, and to look for them takes a while
        split = split_samples(samples, SplitSettings(labels=1.0), seed=0, names_near_duplicates=False)
    except UserTooSmallError as error:
        log.info("Left out: %s", error)
        return None
    return BatchUser(samples=samples, split=split) if len(split.judged) >= 2 * FEWEST_SAMPLES else None


def _groups(network: MultiExitNetwork, partitions: Partitions, users: Sequence[str]) -> Iterator[list[BatchUser]]:
    """Yield users of like sizes, so many at a time as fit into the memory of the network's GPU; elsewhere one by one.

    Who has too few samples is left out. The images of a few groups are in memory at a time.
    """
    together = _is_on_gpu(network)
    waiting: list[BatchUser] = []
    for name in users:
        user = _with_split(partitions, name)
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
        # the features of all samples, and a batch's maps unfolded for a convolution, forth and back
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


def _of_group(network: MultiExitNetwork, users: Sequence[BatchUser]) -> list[dict[str, _Curves]]:
    """Return each user's curves by the name of their pool: four personalisations over one pass of the backbone."""
    features = fill_cache(network, np.concatenate([user.samples.images for user in users]))
    curves: list[dict[str, _Curves]] = [{} for _ in users]
    for labels in (1.0, 0.0):
        known = [user if labels else _unlabelled(user) for user in users]
        for schedule in get_args(Schedule):
            settings = PersonalisationSettings(schedule=schedule, weights=loss_weights("auto", labels))
            for own, user, done in zip(curves, users, _personalised(network, known, settings, features), strict=True):
                truth = user.samples.labels[user.split.judged]
                given = truth if labels else np.full_like(truth, -1)
                own[pool_name(schedule, bool(labels))] = _curves(network, done.outputs.all, given, truth)
                own[pool_name(BEFORE, bool(labels))] = _curves(network, done.outputs_before.all, given, truth)
    return curves


def _personalised(
    network: MultiExitNetwork, users: Sequence[BatchUser], settings: PersonalisationSettings, features: FeatureCache
) -> list[Personalisation]:
    if len(users) > 1:
        return personalise_batch(network, users, settings, features=features)
    return [personalise(network, users[0].samples, users[0].split, settings, features=features)]


def _unlabelled(user: BatchUser) -> BatchUser:
    return replace(user, split=replace(user.split, labelled=np.zeros_like(user.split.labelled)))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def _curves(
    network: MultiExitNetwork, outputs: ExitOutputs, known: NDArray[np.int64], truth: NDArray[np.int64]
) -> _Curves:
    last_logits = outputs.logits[-1].astype(np.float64)
    believed, lost = (
        risk_curve(outputs.confidences, excess, network.costs.leaving_macs, float(network.costs.original_macs))
        for excess in (
            own_excess(outputs.predictions, known, last_logits, network.calibration),
            labelled_excess(outputs.predictions, truth),
        )
    )
    return _Curves(believed=believed, lost=lost)
