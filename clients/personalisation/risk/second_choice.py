"""The policy of a round that is over, chosen again with the pool of the other clients' risk curves (Sec. 3.1.4)."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation.calibration import LeavingCosts
from persephonee.clients.personalisation.evaluation import JudgedOutputs, report_round
from persephonee.clients.personalisation.exit_shifts import with_last_shift
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.familiar_images import familiar_images
from persephonee.clients.personalisation.features import Features, backbone_fingerprint, features_of
from persephonee.clients.personalisation.labels import labelled_fraction, reference_classes, usable_labels
from persephonee.clients.personalisation.profiler import profile_exits
from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.clients.personalisation.risk.policy_choice import choose_policy
from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.exit_weights import as_arrays

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network


def choose_again(
    network: "Network",
    samples: UserSamples,
    split: SampleSplit,
    settings: PersonalisationSettings,
    store: ExitStore,
    pool: RiskPool,
    *,
    run: str,
    round_number: int,
    features: Features | None = None,
) -> PersonalisationReport:
    """Choose the policy of a round's exits again, put it in force, and report on it.

    Args:
        network: the global model.
        samples: of the user, as in the round.
        split: as in the round.
        settings: as in the round.
        store: that the round saved its exits in.
        pool: of the other clients.
        run: that the round belonged to.
        round_number: from 1.
        features: of all the user's samples; None computes those of the samples on which exits are judged.

    Returns:
        The report of the policy in force. What it says of "before" is of the model's own exits.

    Raises:
        StoreError: the store is damaged, or holds the exits of another round.
        OSError: the store cannot be written; the policy of the round stays in force.
    """
    begin = time.perf_counter()
    own = as_arrays(network.exit_state())
    backbone = backbone_fingerprint(network.freeze_backbone())
    stored = store.load(backbone, own, samples.client_id, graphs=network.graphs_fingerprint)
    if stored is None or (stored.run, stored.round) != (run, round_number):
        raise StoreError(f"{store.folder} holds no exits of round {round_number} of this run: run the round again.")
    labels = usable_labels(samples, split, settings)
    judged, count = split.judged, len(split.calibration)
    if features is None:
        features, judged = features_of(network, samples.images[judged]), np.arange(len(judged))
    in_force = with_last_shift(features, stored.last_shift)
    last_logits, last_in_force = features.last_exit_logits[judged], in_force.last_exit_logits[judged]
    before = JudgedOutputs.parted(features.exit_logits(own, judged), last_logits, count)
    after = JudgedOutputs.parted(features.exit_logits(stored.exit_weights, judged), last_in_force, count)
    familiar = familiar_images(samples, split, settings)
    before, after = (outputs.with_unfamiliar(familiar, samples, split) for outputs in (before, after))
    given = labels[split.calibration]
    leaving_costs: LeavingCosts = network.costs.leaving_macs
    if settings.cost == "latency":
        leaving_costs = profile_exits(network, stored.exit_weights, samples.images[split.calibration], given).leaving_ms
    choice = choose_policy(
        after.calibration,
        given,
        leaving_costs,
        settings,
        calibration=network.calibration,
        shipped=network.risk_pools,
        stage=settings.schedule,
        pool=pool,
        original=before.calibration.predictions[-1],
        familiar=familiar,
    )
    store.save(replace(stored, policy=choice.policy), own)
    return report_round(
        samples,
        split,
        reference_classes(samples.labels[split.test], last_in_force[count:]),
        network.costs,
        outputs_before=before.test,
        policy_before=choice.policy,
        outputs_after=after.test,
        policy_after=choice.policy,
        chosen_by=choice.chosen_by,
        round_number=round_number,
        labels=labelled_fraction(labels, split),
        rolled_back=(),
        seconds=time.perf_counter() - begin,
    )
