"""The two halves of a personalisation round: what training starts from, and what follows it (Sec. 3.1).

Between them the exits are trained, of one user (`clients/personalisation/personalise.py`) or of many
(`clients/personalisation/batched_personalise.py`).
"""

import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from persephonee.clients.errors import LabelsRequiredError, StoreError
from persephonee.clients.personalisation.evaluation import ExitOutputs, apply_policy, exit_metrics, run_exits
from persephonee.clients.personalisation.exit_store import ExitStore, StoredExits
from persephonee.clients.personalisation.fast_training import classify
from persephonee.clients.personalisation.features import FeatureCache
from persephonee.clients.personalisation.frozen_backbone import frozen_backbone
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.profiler import Profile, profile_exits, save_profile
from persephonee.clients.personalisation.pruning import calibrate_and_prune
from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.losses import UNLABELLED
from persephonee.multi_exit.network import MultiExitNetwork


@dataclass(frozen=True, kw_only=True)
class Personalisation:
    """The result of a round.

    Attributes:
        report: aggregates, all that a client may send without its owner's permission.
        policy: the threshold and the exits in use from now on.
        exit_weights: the personal exits' tensors; `network.load_exit_state` takes them.
        trained: all exits as training left them, before the guard; what a federated round may share.
        worse: the exits that training made worse on the calibration samples than those that it started from.
        profile: measured on this device, where the settings ask for latencies.
    """

    report: PersonalisationReport
    policy: ExitPolicy
    exit_weights: dict[str, Tensor]
    trained: dict[str, Tensor]
    worse: tuple[int, ...]
    profile: Profile | None = None


class PersonalisationRound:
    """One user's round; the arguments are those of `personalise`.

    Attributes:
        start: M exit heads that training starts from.
        heads: a copy of them, to train in place.
        global_heads: the global exits, for comparison and as an anchor.
        labels: int64 [N], -1 where the device may not use the label.
        generator: of the order of the training samples.

    Raises:
        LabelsRequiredError: settings.weights.alpha is the only weight, and no training sample has a label.
        StoreError: the store is damaged, or belongs to another model.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        samples: UserSamples,
        split: SampleSplit,
        settings: PersonalisationSettings,
        *,
        store: ExitStore | None,
        round_number: int,
        seed: int,
        global_exit_weights: dict[str, Tensor] | None,
        run: str,
    ) -> None:
        self._begin = time.perf_counter()
        self._network, self._samples, self._split = network, samples, split
        self._settings, self._store, self._number, self._run = settings, store, round_number, run
        network.freeze_backbone()
        self.labels = torch.where(split.labelled, samples.labels, UNLABELLED)
        _require_labels(self.labels[split.train], settings, samples.client_id)
        self.global_heads = network.heads if global_exit_weights is None else _heads_with(network, global_exit_weights)
        stored = None
        if store is not None:
            fingerprint = frozen_backbone(network).fingerprint
            stored = store.load(fingerprint, samples.client_id, (run, round_number) if run else None)
        self._own = self.global_heads if stored is None else _heads_with(network, stored.exit_weights)
        self.start = self._own if global_exit_weights is None else self.global_heads
        self.heads = copy.deepcopy(self.start).requires_grad_(True)
        self.generator = _generator(seed, samples.client_id, round_number)

    def finish(self, features: FeatureCache, embedded: Sequence[Tensor] | None = None) -> Personalisation:
        """Guard the trained heads, calibrate, prune, store and report.

        Args:
            features: of all the user's samples.
            embedded: what the classifiers take of them, where training left all else in the heads as it was.

        Raises:
            OSError: the store cannot be written; the previous round stays in force.
        """
        network, split, costs = self._network, self._split, self._network.costs
        reference = _reference(self.labels, features.last_logits.cpu(), split.calibration)
        seen, num_calibration = torch.cat([split.calibration, split.test]), len(split.calibration)

        # each of the global heads, the user's own former ones and the trained ones answers once
        def predictions(of: nn.ModuleList) -> tuple[ExitOutputs, ExitOutputs]:
            if embedded is not None and (of is self.start or of is self.heads):
                early = classify(of, [rows[seen] for rows in embedded])
                logits = torch.cat([early, features.last_logits[None, seen]])
            else:
                logits = run_exits(of, features, seen).logits
            return ExitOutputs.of(logits[:, :num_calibration]), ExitOutputs.of(logits[:, num_calibration:])

        outputs_global = predictions(self.global_heads)
        outputs_own = outputs_global if self._own is self.global_heads else predictions(self._own)
        outputs_trained = predictions(self.heads)

        # the guard: an exit that got worse on the calibration set keeps its previous weights
        trained = _state(self.heads)
        rolled_back = _worse(outputs_trained[0], outputs_own[0], reference)
        outputs_start = outputs_own if self.start is self._own else outputs_global
        worse = _worse(outputs_trained[0], outputs_start[0], reference)
        for i in rolled_back:
            self.heads[i].load_state_dict(self._own[i].state_dict())
        outputs = [of.replaced(rolled_back, own) for of, own in zip(outputs_trained, outputs_own, strict=True)]

        # 3 profile: latencies of this device where they are asked for; else MACs, which are the same everywhere
        profile = None
        if self._settings.cost == "latency":
            images, labels = self._samples.images[split.calibration], self.labels[split.calibration]
            profile = profile_exits(network, self.heads, images, labels)

        # 4 and 5 calibrate and prune, with the global exits for comparison and with the personal ones
        def calibrated(of: ExitOutputs) -> ExitPolicy:
            leaving = profile.leaving_ms if profile else costs.leaving_macs
            correct = of.predictions == reference.numpy()
            return calibrate_and_prune(of.confidences, correct, leaving, self._settings.drop_tolerance)[0]

        policy_before, policy = calibrated(outputs_global[0]), calibrated(outputs[0])
        exits = _state(self.heads)
        if self._store is not None:
            self._save(self._store, policy, exits, profile)
        report = self._report(outputs_global[1], policy_before, outputs[1], policy, rolled_back)
        return Personalisation(
            report=report, policy=policy, exit_weights=exits, trained=trained, worse=worse, profile=profile
        )

    def _save(self, store: ExitStore, policy: ExitPolicy, exits: dict[str, Tensor], profile: Profile | None) -> None:
        split = self._split
        if profile is not None:
            save_profile(store.folder, profile, self._number)
        store.save(
            StoredExits(
                client_id=self._samples.client_id,
                run=self._run,
                round=self._number,
                backbone_fingerprint=frozen_backbone(self._network).fingerprint,
                policy=policy,
                exit_weights=exits,
                parts=store.known_parts().after(self._samples.images, split.train, split.calibration, split.test),
            )
        )

    def _report(
        self,
        outputs_before: ExitOutputs,
        policy_before: ExitPolicy,
        outputs_after: ExitOutputs,
        policy: ExitPolicy,
        rolled_back: tuple[int, ...],
    ) -> PersonalisationReport:
        """Return the report on the test part; its labels serve evaluation only."""
        split, costs = self._split, self._network.costs
        truth = self._samples.labels[split.test]
        before = apply_policy(outputs_before, policy_before, truth, costs)
        after = apply_policy(outputs_after, policy, truth, costs)
        return PersonalisationReport(
            client_id=self._samples.client_id,
            round=self._number,
            status="ok",
            num_train=len(split.train),
            num_calibration=len(split.calibration),
            num_test=len(split.test),
            labels=_labelled_fraction(self.labels, split),
            threshold=policy.threshold,
            accuracy_original=float(outputs_after.accuracies(truth)[-1]),
            accuracy_before=before.accuracy,
            accuracy_after=after.accuracy,
            mean_macs=after.mean_macs,
            mean_macs_before=before.mean_macs,
            original_macs=costs.original_macs,
            seconds_personalise=time.perf_counter() - self._begin,
            rolled_back_exits=rolled_back,
            exit_metrics=(
                *exit_metrics(outputs_before, policy_before, truth, costs, "before"),
                *exit_metrics(outputs_after, policy, truth, costs, "after"),
            ),
        )


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
    return {f"heads.{name}": tensor.detach().cpu().clone() for name, tensor in heads.state_dict().items()}


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


def _labelled_fraction(labels: Tensor, split: SampleSplit) -> str:
    usable = labels[torch.cat([split.train, split.calibration])]
    share = float((usable != UNLABELLED).float().mean())
    return {0.0: "none", 1.0: "all"}.get(share, f"{share:.2f}")
