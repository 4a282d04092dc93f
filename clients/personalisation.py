"""One personalisation round on the device, from a user's samples to the report (PersEPhonEE, Sec. 3.1).

Start reading here: `personalise` is the way of a user's samples, a step a line, and each step is a file beside this.
"""

import copy
import hashlib
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clients.errors import LabelsRequiredError, StoreError
from clients.evaluation import ExitOutputs, apply_policy, exit_metrics, run_exits
from clients.exit_store import ExitStore, StoredExits
from clients.exit_training import train_exits
from clients.features import FeatureCache, compute_features
from clients.policy import ExitPolicy
from clients.profiler import Profile, profile_exits, save_profile
from clients.pruning import calibrate_and_prune
from clients.reports import PersonalisationReport
from clients.settings import PersonalisationSettings
from data_partitions.samples import UserSamples
from data_partitions.user_splits import SampleSplit
from multi_exit.losses import UNLABELLED
from multi_exit.network import MultiExitNetwork


@dataclass(frozen=True, kw_only=True)
class Personalisation:
    """The result of a round.

    Attributes:
        report: aggregates, all that a client may send without its owner's permission.
        policy: the threshold and the exits in use from now on.
        exits: the personal exits' tensors; `network.load_exit_state` takes them.
        profile: measured on this device, where the settings ask for latencies.
        trained: all exits as training left them, before the guard; what a federated round may share.
        worse: the exits that training made worse on the calibration samples than those that it started from.
    """

    report: PersonalisationReport
    policy: ExitPolicy
    exits: dict[str, Tensor]
    trained: dict[str, Tensor]
    worse: tuple[int, ...]
    profile: Profile | None = None


def personalise(
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    settings: PersonalisationSettings,
    *,
    store: ExitStore | None = None,
    round_number: int = 1,
    seed: int = 0,
    features: FeatureCache | None = None,
    global_exits: dict[str, Tensor] | None = None,
    run: str = "",
) -> Personalisation:
    """Retrain the early exits on one user's samples, choose the threshold, prune, and report.

    Args:
        network: the global model; its backbone is frozen here, and its weights are left as they are.
        samples: the user's N samples.
        split: which of them train, calibrate and test, and whose label the device may use.
        settings: the loss, the schedule and the drop tolerance.
        store: where personal exits live between rounds; a round starts from those of the round before.
        round_number: from 1.
        seed: with client id and round it determines the result.
        features: of these samples and this network, where they have been computed already; None computes them.
        global_exits: what a federation merged. The round then starts from them, and the guard still compares with the
            user's own; None takes the network's for comparison and starts from the user's own.
        run: of a federation; a round of the same run and number starts from what it started from before.

    Returns:
        The report, the policy and the personal exits. They are in the store, if one was given.

    Raises:
        LabelsRequiredError: settings.weights.alpha is the only weight, and no training sample has a label.
        NonFiniteLossError: the training diverged; the store is untouched.
        StoreError: the store is damaged, or belongs to another model.
        OSError: the store cannot be written; the previous round stays in force.
    """
    begin = time.perf_counter()
    network.freeze_backbone()
    labels = torch.where(split.labelled, samples.labels, UNLABELLED)
    _require_labels(labels[split.train], settings, samples.client_id)

    global_heads = network.heads if global_exits is None else _heads_with(network, global_exits)
    stored = None
    if store is not None:
        stored = store.load(network.backbone_fingerprint, samples.client_id, (run, round_number) if run else None)
    own = global_heads if stored is None else _heads_with(network, stored.exits)
    start = own if global_exits is None else global_heads

    # 1 features: one pass through the frozen backbone serves training, calibration and test
    if features is None:
        features = compute_features(network, samples.images)

    # 2 exit training, and the guard: an exit that got worse on the calibration set keeps its previous weights
    heads = copy.deepcopy(start).requires_grad_(True)
    generator = _generator(seed, samples.client_id, round_number)
    train_exits(heads, features, labels, split.train, settings, generator, anchor=global_heads)
    reference = _reference(labels, features.last_logits, split.calibration)
    trained = _state(heads)
    outputs_trained, outputs_own = (run_exits(of, features, split.calibration) for of in (heads, own))
    rolled_back = _worse(outputs_trained, outputs_own, reference)
    outputs_start = outputs_own if start is own else run_exits(start, features, split.calibration)
    for i in rolled_back:
        heads[i].load_state_dict(own[i].state_dict())

    # 3 profile: latencies of this device where they are asked for; else MACs, which are the same everywhere
    profile = None
    if settings.cost == "latency":
        profile = profile_exits(network, heads, samples.images[split.calibration], labels[split.calibration])

    # 4 and 5 calibrate and prune, with the global exits for comparison and with the personal ones
    def calibrated(of: nn.ModuleList) -> ExitPolicy:
        outputs = run_exits(of, features, split.calibration)
        correct = outputs.predictions == reference.numpy()
        costs = profile.leaving_ms if profile else network.costs.leaving_macs
        return calibrate_and_prune(outputs.confidences, correct, costs, settings.drop_tolerance)[0]

    policy_before, policy = calibrated(global_heads), calibrated(heads)

    # the report: labels of the test part serve evaluation only
    truth = samples.labels[split.test]
    outputs_before = run_exits(global_heads, features, split.test)
    outputs_after = run_exits(heads, features, split.test)
    before = apply_policy(outputs_before, policy_before, truth, network.costs)
    after = apply_policy(outputs_after, policy, truth, network.costs)
    exits = _state(heads)
    if store is not None:
        if profile is not None:
            save_profile(store.folder, profile, round_number)
        store.save(
            StoredExits(
                client_id=samples.client_id,
                run=run,
                round=round_number,
                backbone_fingerprint=network.backbone_fingerprint,
                policy=policy,
                exits=exits,
            )
        )
    report = PersonalisationReport(
        client_id=samples.client_id,
        round=round_number,
        status="ok",
        num_train=len(split.train),
        num_calibration=len(split.calibration),
        num_test=len(split.test),
        labels=_labelled_share(labels, split),
        threshold=policy.threshold,
        accuracy_original=float(outputs_after.accuracies(truth)[-1]),
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        mean_macs=after.mean_macs,
        mean_macs_before=before.mean_macs,
        original_macs=network.costs.original_macs,
        seconds_personalise=time.perf_counter() - begin,
        rolled_back_exits=rolled_back,
        exits=(
            *exit_metrics(outputs_before, policy_before, truth, network.costs, "before"),
            *exit_metrics(outputs_after, policy, truth, network.costs, "after"),
        ),
    )
    worse = _worse(outputs_trained, outputs_start, reference)
    return Personalisation(report=report, policy=policy, exits=exits, trained=trained, worse=worse, profile=profile)


def _require_labels(labels: Tensor, settings: PersonalisationSettings, client_id: str) -> None:
    weights = settings.weights
    if weights.alpha > 0 and weights.beta == 0 and bool((labels == UNLABELLED).all()):
        raise LabelsRequiredError(
            f"user {client_id!r} has no labelled training sample, and alpha > 0 learns from labels only: "
            "give labels, or use self-distillation (beta) or self-supervision (gamma)."
        )


def _heads_with(network: MultiExitNetwork, exits: dict[str, Tensor]) -> nn.ModuleList:
    """Return a copy of the network's heads with these weights in it."""
    heads = copy.deepcopy(network.heads)
    try:
        heads.load_state_dict({name.removeprefix("heads."): t for name, t in exits.items()})
    except RuntimeError:
        raise StoreError("exits do not fit the model: use the model that they belong to.") from None
    return heads


def _state(heads: nn.ModuleList) -> dict[str, Tensor]:
    return {f"heads.{name}": tensor.detach().clone() for name, tensor in heads.state_dict().items()}


def _generator(seed: int, client_id: str, round_number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{client_id}/{round_number}/exit training".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _reference(labels: Tensor, last_logits: Tensor, samples: Tensor) -> Tensor:
    """Return what calibration measures against: the label where there is one, else the last exit's answer."""
    given = labels[samples]
    return torch.where(given == UNLABELLED, last_logits[samples].argmax(dim=1), given)


def _worse(after: ExitOutputs, before: ExitOutputs, reference: Tensor) -> tuple[int, ...]:
    """Return the early exits with a lower accuracy on the calibration set, or the same with a higher loss."""
    scores_before = list(zip(before.accuracies(reference), -before.losses(reference), strict=True))
    scores_after = list(zip(after.accuracies(reference), -after.losses(reference), strict=True))
    return tuple(i for i in range(len(scores_after) - 1) if scores_after[i] < scores_before[i])


def _labelled_share(labels: Tensor, split: SampleSplit) -> str:
    usable = labels[torch.cat([split.train, split.calibration])]
    share = float((usable != UNLABELLED).float().mean())
    return {0.0: "none", 1.0: "all"}.get(share, f"{share:.2f}")
