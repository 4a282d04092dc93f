"""The risk curves that ship with a model: users who trained nothing personalise in the same way as a device does.

Beside them, for a model that has none yet, the calibration of its exits (temperatures, biases, class frequencies).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from persephonee.clients.personalisation.batched_personalise import BatchUser, personalise_batch
from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.feature_cache import FeatureCache, fill_cache
from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.risk.risk_control import pool_curves
from persephonee.clients.personalisation.risk.risk_curves import (
    RiskCurve,
    labelled_excess,
    own_excess,
    risk_curve,
)
from persephonee.clients.personalisation.risk.risk_pools import BEFORE, pool_name
from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule, loss_weights
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.synthetic.synthetic_writers import SyntheticWriters
from persephonee.data_partitions.user_splits import choose_users
from persephonee.fl_app.server_side.prior_trials import least_gain_of, prior_trials
from persephonee.fl_app.server_side.user_groups import user_groups
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from persephonee.server.training.exit_calibration_fit import fit_calibration
from persephonee.server.training.global_model import choose_training_users, is_global_pool
from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
from persephonee.server.training.training_samples import gather_samples

log = logging.getLogger("persephonee.calibrate")

PROMISES = tuple((tolerance, delta) for tolerance in (0.005, 0.01, 0.02, 0.03, 0.05) for delta in (0.05, 0.1, 0.2))
"""Pairs of a tolerance and delta for which a model's pools are certified; a device takes what fits its settings."""

CALIBRATED_ON = "calibrated_on"
"""Where the metadata's settings name the users that no validation saw and the pools did."""

Told = Callable[[int, int], None]


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


def check_held_out_users(
    settings: GlobalModelSettings, partitions: Partitions, told: Told = lambda done, of: None
) -> None:
    """Read, before a pretraining, the users on whom its model will be calibrated: what is broken is not found after it.

    Raises:
        DataError: a user's samples cannot be read.
        PretrainingError: there are too few users.
    """
    users, seed = settings.users, settings.training.seed
    if not users.calibration_users or isinstance(partitions, SyntheticWriters):
        return
    if users.personal_users is None and is_global_pool(partitions):
        users = replace(users, personal_users=0)
    train, validation = choose_training_users(partitions.client_ids, users, seed)
    foreseen = {"validated_on": validation, "personal_users": users.personal_users}
    metadata = ModelMetadata(trained_on=(*train, *validation), settings=foreseen)
    # those who validate are read by the training
    _, others = held_out_users(metadata, partitions, users.calibration_users, seed)
    for count, name in enumerate(others, start=1):
        partitions.load_partition(partitions.client_ids.index(name))
        told(count, len(others))


def make_pools(
    network: MultiExitNetwork, partitions: Partitions, users: Sequence[str], told: Told = lambda done, of: None
) -> tuple[dict[str, Any], int]:
    """Return the pools of these users by name, and how many of the users had enough samples.

    On a GPU users of like size personalise together, elsewhere one after the other, which is faster there.
    """
    network.freeze_backbone()
    network.risk_pools = {}
    found: dict[str, dict[str, _Curves]] = {}
    for group in user_groups(network, partitions, users):
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
                before, after = done.outputs_before.all, done.outputs.all
                raw = before.predictions[-1]
                own[pool_name(schedule, bool(labels))] = _curves(network, after, given, truth)
                own[pool_name(schedule, bool(labels), "original")] = _curves(network, after, given, truth, raw)
                own[pool_name(BEFORE, bool(labels))] = _curves(network, before, given, truth)
    return curves


def _personalised(
    network: MultiExitNetwork, users: Sequence[BatchUser], settings: PersonalisationSettings, features: FeatureCache
) -> list[Personalisation]:
    if len(users) > 1:
        return personalise_batch(network, users, settings, features=features)
    return [personalise(network, users[0].samples, users[0].split, settings, features=features)]


def _unlabelled(user: BatchUser) -> BatchUser:
    return replace(user, split=replace(user.split, labelled=np.zeros_like(user.split.labelled)))


def _curves(
    network: MultiExitNetwork,
    outputs: ExitOutputs,
    known: NDArray[np.int64],
    truth: NDArray[np.int64],
    original: NDArray[np.int64] | None = None,
) -> _Curves:
    last_logits = outputs.logits[-1].astype(np.float64)
    believed, lost = (
        risk_curve(outputs.confidences, excess, network.costs.leaving_macs, float(network.costs.original_macs))
        for excess in (
            own_excess(outputs.predictions, known, last_logits, network.calibration, original),
            labelled_excess(outputs.predictions, truth, original),
        )
    )
    return _Curves(believed=believed, lost=lost)
