"""One personalisation round on the device, from a user's samples to the report (PersEPhonEE, Sec. 3.1).

Start reading here: `personalise` is the way of a user's samples, a step a line, and each step is a file beside this.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from persephonee.clients.personalisation.calibration import LeavingCosts
from persephonee.clients.personalisation.evaluation import JudgedOutputs, report_round
from persephonee.clients.personalisation.exit_shifts import (
    class_shifts,
    last_exit_probabilities,
    shifted,
    with_last_shift,
)
from persephonee.clients.personalisation.exit_store import ExitStore, StoredExits
from persephonee.clients.personalisation.familiar_images import familiar_images
from persephonee.clients.personalisation.features import (
    Features,
    Logits,
    backbone_fingerprint,
    features_within_budget,
    runs_on_graphs,
)
from persephonee.clients.personalisation.guard import guard, worse_exits
from persephonee.clients.personalisation.labels import labelled_fraction, reference_classes, usable_labels
from persephonee.clients.personalisation.network_for import network_for
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.profiler import Profile, profile_exits, save_profile
from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.clients.personalisation.risk.policy_choice import PolicyChoice, choose_policy
from persephonee.clients.personalisation.risk.risk_pools import BEFORE, RiskPool
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.starting_exits import starting_exits
from persephonee.clients.personalisation.training.schedules import TrainedExits, train
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.seeds import torch_generator
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples
from persephonee.multi_exit.exit_weights import ExitWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from persephonee.clients.personalisation.features import Network


@dataclass(frozen=True, kw_only=True)
class Personalisation:
    """The result of a round.

    Attributes:
        report: aggregates, all that a client may send without its owner's permission.
        policy: the threshold and the exits in use from now on.
        choice: which rule chose it, and the user's risk curve.
        outputs_before: what the global exits answer; single samples, which never leave the device.
        outputs: what the personal exits answer; likewise.
        exit_weights: the personal exits' arrays; `network.load_exit_state` takes them.
        trained: all exits as training left them, before the guard and without the user's class frequencies; what a
            federated round may share.
        shifts: what the user's class frequencies add to the logits of the M+1 exits in force, as `StoredExits` has it.
        worse: the exits that training made worse on the calibration samples than those that it started from.
        network: the global model, or the one that was built of a CNN; its exits are the global ones.
        profile: measured on this device, where the settings ask for latencies.
    """

    report: PersonalisationReport
    policy: ExitPolicy
    choice: PolicyChoice
    outputs_before: JudgedOutputs
    outputs: JudgedOutputs
    exit_weights: ExitWeights
    trained: ExitWeights
    shifts: Logits | None
    worse: tuple[int, ...]
    network: "Network"
    profile: Profile | None = None

    @property
    def last_shift(self) -> Logits | None:
        """What the user's class frequencies add to the last exit's logits, [K]; an inference engine takes it."""
        return None if self.shifts is None else self.shifts[-1]

    def personal_network(self) -> "Network":
        """Return a copy of the network with the personal exits, for inference with the policy."""
        # graphs are shared, and so are their sessions
        personal = copy.copy(self.network) if runs_on_graphs(self.network) else copy.deepcopy(self.network).eval()
        personal.load_exit_state(self.exit_weights)
        return personal


def personalise(
    network: "Network | nn.Module",
    samples: UserSamples,
    split: SampleSplit | None = None,
    settings: PersonalisationSettings | None = None,
    *,
    store: ExitStore | None = None,
    round_number: int = 1,
    seed: int = 0,
    features: Features | None = None,
    shifts: Logits | None = None,
    trained: TrainedExits | None = None,
    global_exit_weights: "Mapping[str, Tensor] | Mapping[str, NDArray[Any]] | None" = None,
    run: str = "",
    pool: RiskPool | None = None,
    tell: Callable[[str], None] = lambda step: None,
) -> Personalisation:
    """Retrain the early exits on one user's samples, choose the threshold, prune, and report.

    Args:
        network: the global model; its backbone is frozen here, and its weights are left as they are. All is computed
            on its device; what comes back and what is stored is on the CPU. Of a trained CNN of one's own the network
            is built first, with up to six exits, which begin untrained.
        samples: the user's N samples.
        split: which of them train, calibrate and test, and whose label the device may use; None divides them by
            `SplitSettings()` and the seed.
        settings: the loss, the schedule and the drop tolerance; None takes the paper's, which learns from labels.
        store: where personal exits live between rounds; a round starts from those of the round before.
        round_number: from 1.
        seed: with client id and round it determines the result.
        features: of these samples and this network, where they have been computed already; None computes them.
        shifts: of the user's class frequencies, where they have been estimated already; None estimates them.
        trained: where exits of many users have been trained at once (`batched_personalise.py`); None trains them.
        global_exit_weights: what a federation merged. The round then starts from them, and the guard still compares
            with the user's own; None takes the network's for comparison and starts from the user's own.
        run: of a federation; a round of the same run and number starts from what it started from before.
        pool: of the other clients' risk curves, for the federated rule; None takes what ships with the model.
        tell: called with each step that may take long, in words.

    Returns:
        The report, the policy and the personal exits. They are in the store, if one was given.

    Raises:
        LabelsRequiredError: settings.weights.alpha is the only weight, and no training sample has a label.
        NonFiniteLossError: the training diverged; the store is untouched.
        ClientSettingsError: the samples do not fit the network, or settings.memory_budget is below what an image takes.
        BackboneError: a CNN of one's own cannot be cut, or does not take the user's images.
        StoreError: the store is damaged, or belongs to another model.
        OSError: the store cannot be written; the previous round stays in force.
    """
    begin, user = time.perf_counter(), samples.client_id
    settings = settings or PersonalisationSettings()
    split = split or split_samples(samples, SplitSettings(), seed, store.known_parts() if store else None)
    network = network_for(network, samples).freeze_backbone()
    labels = usable_labels(samples, split, settings)
    given = labels[split.calibration]
    repeating = (run, round_number) if run else None
    exits = starting_exits(network, user, store, global_exit_weights=global_exit_weights, repeating=repeating)

    # 1 features: one pass through the frozen backbone serves training, calibration and test (3.1.3)
    if features is None:
        macs = network.costs.original_macs / 1e6
        tell(f"computing the features of {len(samples)} images of {user}, {macs:.0f} MMAC each")
        features = features_within_budget(network, samples.images, settings)

    # 2 prior: the user's class frequencies, which the exits, their teacher and the policy's last exit count on
    if shifts is None:
        shifts = class_shifts(network, features, labels, split, settings, seed, user, round_number)
    exits = replace(exits, shifts=shifts)
    teacher = with_last_shift(features, shifts[-1])
    last_exit = teacher if settings.adapt_last_exit else features
    expected = last_exit_probabilities(network, teacher.last_exit_logits[split.calibration])

    # 3 exit training: Eq. (1); the backbone never moves (3.1.3)
    if trained is None:
        tell(f"training {network.num_exits} exits on {len(split.train)} images, {_passes(settings)}")
        make_generator = partial(torch_generator, seed, user, round_number, "exit training")
        trained = train(exits, teacher, labels, split, settings, make_generator)
    outputs_trained = JudgedOutputs.of(trained.logits, last_exit, split)
    outputs_start = JudgedOutputs.of(trained.start_logits, last_exit, split)
    outputs_global = JudgedOutputs.of(
        exits.logits_of_global(trained.start_logits, features, split.judged), features, split
    )
    outputs_previous = JudgedOutputs.of(
        exits.logits_of_previous(trained.start_logits, features, split.judged), last_exit, split
    )

    # 4 guard: an exit that got significantly worse goes back
    tell(f"choosing the policy on {len(split.calibration)} images, and testing it on {len(split.test)}")
    guarded = guard(trained.exits, outputs_trained, exits.previous, outputs_previous, given, expected)

    # 5 profile: latencies of this device where they are asked for; else MACs, which are the same everywhere (3.3)
    leaving_costs: LeavingCosts = network.costs.leaving_macs
    profile = None
    if settings.cost == "latency":
        profile = profile_exits(network, guarded.exits, samples.images[split.calibration], labels[split.calibration])
        leaving_costs = profile.leaving_ms

    # 6 calibrate, 7 prune: by the rule, with the global exits for comparison, and with the personal ones (3.1.4);
    # what is unlike the user's own images takes the last exit
    familiar = familiar_images(samples, split, settings)
    outputs_global = outputs_global.with_unfamiliar(familiar, samples, split)
    outputs = guarded.outputs.with_unfamiliar(familiar, samples, split)
    by_rule = partial(
        choose_policy,
        labels=given,
        leaving_costs=leaving_costs,
        settings=settings,
        calibration=network.calibration,
        shipped=network.risk_pools,
        familiar=familiar,
    )
    policy_before = by_rule(outputs_global.calibration, stage=BEFORE).policy
    original = outputs_global.calibration.predictions[-1]
    choice = by_rule(outputs.calibration, stage=settings.schedule, pool=pool, original=original)
    policy = choice.policy

    # 8 store: exits, policy and what each sample has served for, all or nothing
    exit_weights = guarded.exits
    shifts_in_force = exits.shifts_after(guarded.rolled_back, adapt_last_exit=settings.adapt_last_exit)
    if store is not None:
        if profile is not None:
            save_profile(store.folder, profile, round_number)
        store.save(
            StoredExits(
                client_id=user,
                run=run,
                round=round_number,
                backbone_fingerprint=backbone_fingerprint(network),
                graphs_fingerprint=network.graphs_fingerprint,
                policy=policy,
                exit_weights=exit_weights,
                parts=store.known_parts().after(samples.images, split.train, split.calibration, split.test),
                shifts=shifts_in_force,
            ),
            network.exit_state(),
        )

    # 9 report: aggregates over the test samples, whose labels serve nothing else
    truth = reference_classes(samples.labels[split.test], last_exit.last_exit_logits[split.test])
    report = report_round(
        samples,
        split,
        truth,
        network.costs,
        outputs_before=outputs_global.test,
        policy_before=policy_before,
        outputs_after=outputs.test,
        policy_after=policy,
        chosen_by=choice.chosen_by,
        round_number=round_number,
        labels=labelled_fraction(labels, split),
        rolled_back=guarded.rolled_back,
        seconds=time.perf_counter() - begin,
    )
    return Personalisation(
        report=report,
        policy=policy,
        choice=choice,
        outputs_before=outputs_global,
        outputs=outputs,
        exit_weights=exit_weights,
        trained=shifted(trained.exits, -shifts),
        shifts=shifts_in_force,
        worse=worse_exits(outputs_trained.calibration, outputs_start.calibration, given, expected),
        network=network,
        profile=profile,
    )


def _passes(settings: PersonalisationSettings) -> str:
    """Return in words how often the training goes over the samples."""
    return "by the fast schedule" if settings.schedule == "fast" else f"{settings.epochs} epochs"
