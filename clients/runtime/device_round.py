"""A personalisation round from the device's own samples, the policy that it leaves in force, and its validation."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from persephonee.clients.inference.engine import Engine
from persephonee.clients.inference.engines import engine_for
from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.exit_shifts import shifted, with_last_shift
from persephonee.clients.personalisation.exit_store import ExitStore, StoredExits
from persephonee.clients.personalisation.features import Logits, features_of
from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.reports import PersonalisationReport, Stage
from persephonee.clients.personalisation.risk.policy_choice import PAPER
from persephonee.clients.personalisation.risk.risk_curves import FEWEST_SAMPLES
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.runtime.exploration import Validation, agreement_at, explore_logits
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.exit_weights import as_arrays
from persephonee.multi_exit.settings import LossWeights

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network


class PolicyInForce:
    """The exits and the policy of the last round, in the network and in the engine that answers.

    Args:
        network: the global model, whose exits are replaced by the personal ones.
        exits: the store of personal exits.
        client_id: whose exits they are.
    """

    def __init__(self, network: "Network", exits: ExitStore, client_id: str) -> None:
        self._network, self._exits, self._client_id = network, exits, client_id
        self._global_exits = as_arrays(network.exit_state())
        self.engine: Engine
        """Answers; there is one once `load` has been called."""
        self.last_shift: Logits | None = None
        """What the policy adds to the last exit's logits, [K]."""
        self.counts_on_classes = False
        """Whether the user's class frequencies are in force."""

    def stored_exits(self) -> StoredExits | None:
        """Return what the store holds for this model and user."""
        network, own = self._network, self._global_exits
        return self._exits.load(network.backbone_fingerprint, own, self._client_id, graphs=network.graphs_fingerprint)

    def load_global_exits(self) -> None:
        """Give the network the exits with which a round begins."""
        self._network.load_exit_state(self._global_exits)

    def load(self, *, counts_on_classes: bool) -> StoredExits | None:
        """Put what the store holds in force, without the user's class frequencies where they do not count any more.

        An empty store leaves the global exits, and a threshold that no early exit reaches.
        """
        stored = self.stored_exits()
        self._network.load_exit_state(stored.exit_weights if stored else self._global_exits)
        shifts = stored.shifts if stored else None
        self.counts_on_classes = counts_on_classes and shifts is not None
        if stored and shifts is not None and not counts_on_classes:
            self._network.load_exit_state(shifted(stored.exit_weights, -shifts))
        self.last_shift = shifts[-1] if shifts is not None and counts_on_classes else None
        num_exits = self._network.num_exits
        untrained = ExitPolicy(threshold=1.0, exits_in_use=tuple(range(num_exits)), num_exits=num_exits)
        self._make_engine(stored.policy if stored else untrained)
        return stored

    def use_threshold(self, threshold: float) -> None:
        """Answer with another confidence threshold from now on."""
        if self.engine.policy.threshold != threshold:
            self._make_engine(replace(self.engine.policy, threshold=threshold))

    def _make_engine(self, policy: ExitPolicy) -> None:
        self.engine = engine_for(self._network, policy, last_shift=self.last_shift)


def chosen_and_judged(split: SampleSplit, rule: str) -> SampleSplit:
    """Return the split with every other calibration sample as a test sample: what judges a policy has not chosen it.

    Under the paper's rule, and where a half would be too small to choose, all of them do both, as before.
    """
    if rule == PAPER or len(split.calibration) < 2 * FEWEST_SAMPLES:
        return split
    return replace(split, calibration=split.calibration[::2], test=split.calibration[1::2])


def personalise_from_store(
    network: "Network",
    samples: UserSamples,
    split: SampleSplit,
    settings: PersonalisationSettings,
    weights: Callable[[float], LossWeights],
    store: ExitStore,
    round_number: int,
    seed: int,
) -> Personalisation:
    """Run a round on what the sample store holds.

    Args:
        network: the global model, with the global exits.
        samples: as `SampleStore.load` returns them; an unknown label is -1.
        split: as `chosen_and_judged` returns it.
        settings: schedule, drop tolerance and limits of the round; its loss weights are replaced by `weights`.
        weights: returns the weights of Eq. (1) for a labelled fraction in [0, 1].
        store: holds the exits in force; receives the new ones at the end of the round.
        round_number: number of this round, counted from 1.
        seed: the device's seed; with the client id and the round number it determines the result.

    Raises:
        ClientError: the round is refused; the previous exits stay in force.
        OSError: the store cannot be written; the previous exits stay in force.
    """
    share = float(split.labelled[np.concatenate([split.train, split.calibration])].mean())
    # labels of calibration samples teach nothing
    if not bool(split.labelled[split.train].any()):
        share = 0.0
    return personalise(
        network,
        samples,
        split,
        replace(settings, weights=weights(share)),
        store=store,
        round_number=round_number,
        seed=seed,
    )


def validate(
    network: "Network",
    samples: UserSamples,
    split: SampleSplit,
    policy: ExitPolicy,
    round_number: int,
    last_shift: Logits | None,
) -> Validation | None:
    """Return what the exits loaded in the network and the policy achieve on the samples that judge: the test part.

    None where there is none, as after a round that another program ran.

    Args:
        network: with the exits of the round.
        samples: of the round.
        split: which of them judge.
        policy: that the round chose.
        round_number: of the round.
        last_shift: what the policy adds to the last exit's logits, [K]; None adds nothing.
    """
    if not len(split.test):
        return None
    network.freeze_backbone()
    judged = samples.images[split.test]
    features = with_last_shift(features_of(network, judged), last_shift)
    outputs = run_exits(as_arrays(network.exit_state()), features, np.arange(len(split.test)))
    unfamiliar = None if policy.familiar is None else policy.familiar.unfamiliar(judged)
    logits = outputs.logits[[*policy.exits_in_use, policy.num_exits]].astype(np.float64)
    explored = explore_logits(logits, unfamiliar)
    agreement, early_fraction = agreement_at(explored, policy.threshold)
    return Validation(
        round=round_number,
        threshold=policy.threshold,
        exits=policy.exits_in_use,
        agreement=agreement,
        early_fraction=early_fraction,
        losses=tuple(tuple(sample.losses[i] for sample in explored) for i in range(len(policy.exits_in_use))),
    )


def summary_of(report: PersonalisationReport) -> str:
    """Return what a round reports, as a sentence for the event log."""
    return (
        f"round {report.round} learned from {report.num_train} samples (labels: {report.labels}): on "
        f"{report.num_test} calibration samples {report.accuracy_after:.1%} at {report.threshold:g}, the last "
        f"exit alone {report.accuracy_original:.1%}, {report.mean_macs / report.original_macs:.0%} of its cost; exits "
        f"{[row.exit for row in report.exits_at(Stage.AFTER) if row.kept][:-1]} in use; chosen by: {report.rule}"
    )
