"""The risk curves that ship with a model: users who trained nothing personalise in the same way as a device does.

Beside them, for a model that has none yet, the calibration of its exits (temperatures, biases, class frequencies).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import personalise
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
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from persephonee.server.training.exit_calibration_fit import fit_calibration
from persephonee.server.training.global_model_settings import UserFractions
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

    Returns:
        The network, what is known of it, and how many users its pools are of.

    Raises:
        MultiExitError: the folder holds no model.
        DataError: the data is broken.
        PretrainingError: no user is there to calibrate on.
    """
    network, metadata = load_network(folder, sources)
    chosen, others = held_out_users(metadata, partitions, users, seed)
    if network.calibration is None:
        network.calibration = fit_calibration(network, gather_samples(partitions, chosen))
    network.risk_pools, count = make_pools(network, partitions, chosen, told)
    seen = [*metadata.settings.get(CALIBRATED_ON, ()), *others]
    metadata = replace(
        metadata,
        trained_on=tuple(sorted({*metadata.trained_on, *others})),
        settings={**metadata.settings, CALIBRATED_ON: sorted(set(seen))},
        calibration=network.calibration,
        risk_pools=network.risk_pools,
    )
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


def make_pools(
    network: MultiExitNetwork, partitions: Partitions, users: Sequence[str], told: Told = lambda done, of: None
) -> tuple[dict[str, Any], int]:
    """Return the pools of these users by name, and how many of the users had enough samples."""
    network.freeze_backbone()
    network.risk_pools = {}
    found: dict[str, list[_Curves]] = {}
    count = 0
    for done, user in enumerate(users):
        curves = _of_user(network, partitions, user)
        count += bool(curves)
        for name, one in curves.items():
            found.setdefault(name, []).append(one)
        told(done + 1, len(users))
    pools = {
        name: pool_curves(
            [one.believed for one in curves], "controlled", PROMISES, judged=[one.lost for one in curves]
        ).to_json()
        for name, curves in found.items()
        if len(curves) > 1
    }
    return pools, count


def _of_user(network: MultiExitNetwork, partitions: Partitions, user: str) -> Mapping[str, _Curves]:
    samples = partitions.load_partition(partitions.client_ids.index(user))
    features, found = None, {}
    for labels in (1.0, 0.0):
        try:
            split = split_samples(samples, SplitSettings(labels=labels), seed=0)
        except UserTooSmallError as error:
            log.info("Left out: %s", error)
            return {}
        if len(split.judged) < 2 * FEWEST_SAMPLES:
            return {}
        features = features or compute_features(network, samples.images)
        truth = samples.labels[split.judged]
        known = truth if labels else np.full_like(truth, -1)
        for schedule in get_args(Schedule):
            settings = PersonalisationSettings(schedule=schedule, weights=loss_weights("auto", labels))
            done = personalise(network, samples, split, settings, features=features)
            found[pool_name(schedule, bool(labels))] = _curves(network, done.outputs.all, known, truth)
            found[pool_name(BEFORE, bool(labels))] = _curves(network, done.outputs_before.all, known, truth)
    return found


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
