"""The policy of a round that is over, chosen again with the pool of the other clients' risk curves (Sec. 3.1.4)."""

import copy
import time
from dataclasses import replace

import torch

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation.calibration import LeavingCosts
from persephonee.clients.personalisation.evaluation import JudgedOutputs, exit_logits, report_round
from persephonee.clients.personalisation.exit_shifts import with_last_shift
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.labels import labelled_fraction, reference_classes, usable_labels
from persephonee.clients.personalisation.profiler import profile_exits
from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.clients.personalisation.risk.policy_choice import choose_policy
from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.exit_weights import load_exit_weights
from persephonee.multi_exit.network import MultiExitNetwork


def choose_again(
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    settings: PersonalisationSettings,
    store: ExitStore,
    pool: RiskPool,
    *,
    run: str,
    round_number: int,
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

    Returns:
        The report of the policy in force. What it says of "before" is of the model's own exits.

    Raises:
        StoreError: the store is damaged, or holds the exits of another round.
        OSError: the store cannot be written; the policy of the round stays in force.
    """
    begin = time.perf_counter()
    stored = store.load(network.freeze_backbone().backbone_fingerprint, samples.client_id)
    if stored is None or (stored.run, stored.round) != (run, round_number):
        raise StoreError(f"{store.folder} holds no exits of round {round_number} of this run: run the round again.")
    labels = usable_labels(samples, split, settings)
    personal = copy.deepcopy(network.heads)
    load_exit_weights(personal, stored.exit_weights)
    features = compute_features(network, samples.images[split.judged])
    last_exit = with_last_shift(features, stored.last_shift)
    every, first = torch.arange(len(split.judged)), len(split.calibration)
    before = JudgedOutputs.parted(exit_logits(network.heads, features, every), features.last_logits, first)
    after = JudgedOutputs.parted(exit_logits(personal, features, every), last_exit.last_logits, first)
    given = labels[split.calibration]
    leaving_costs: LeavingCosts = network.costs.leaving_macs
    if settings.cost == "latency":
        leaving_costs = profile_exits(network, personal, samples.images[split.calibration], given).leaving_ms
    choice = choose_policy(
        after.calibration,
        given.numpy(),
        leaving_costs,
        settings,
        calibration=network.calibration,
        shipped=network.risk_pools,
        stage=settings.schedule,
        pool=pool,
    )
    store.save(replace(stored, policy=choice.policy))
    return report_round(
        samples,
        split,
        reference_classes(samples.labels[split.test], last_exit.last_logits[first:]),
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
