"""One user's personalisation rounds for the figures: each scheme, and hard labels with fewer samples."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from persephonee.clients.personalisation.calibration import sweep
from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.exit_shifts import class_shifts, shifted, with_last_shift
from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.labels import usable_labels
from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.reports import Stage
from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule, Scheme, loss_weights
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples
from persephonee.experiments.studies.risk_tables import risk_rows
from persephonee.experiments.studies.studies import Study
from persephonee.multi_exit.network import MultiExitNetwork


@dataclass(frozen=True, kw_only=True)
class Round:
    """How a round of the figures is set.

    Attributes:
        scheme: of Eq. (1).
        schedule: of the exit training.
        use_prior: whether the user's class frequencies count, which the paper does not know.
    """

    scheme: Scheme
    schedule: Schedule = "paper"
    use_prior: bool = False


ROUNDS = {
    "hard labels": Round(scheme="supervised"),
    "self-distillation": Round(scheme="self-distillation"),
    "self-supervision": Round(scheme="self-supervision"),
    "frequencies": Round(scheme="prior", use_prior=True),
    "frequencies, no labels": Round(scheme="self-distillation", schedule="fast", use_prior=True),
    "frequencies, labels": Round(scheme="supervised", schedule="fast", use_prior=True),
}
"""By the figures' names: the paper's schemes, and ours."""


def user_tables(study: Study, network: MultiExitNetwork, samples: UserSamples) -> dict[str, pd.DataFrame]:
    """Personalise for one user under each scheme of the study, and with fewer samples; return a user's rows.

    Returns:
        "exits", "policies", "sweeps" and "risks"; `experiments.studies.measurements.Measured` says their columns.
    """
    split = split_samples(samples, SplitSettings(), study.seed)
    features = compute_features(network, samples.images)
    exits: list[dict[str, Any]] = []
    policies: list[dict[str, Any]] = []
    sweeps: list[dict[str, Any]] = []
    risks: list[pd.DataFrame] = []

    for name in study.schemes:
        result, unguarded = _personalise(study, network, samples, split, ROUNDS[name], features)
        exits += _exit_rows(network, result, name, unguarded, whole=True)
        policies.append(_policy_row(result, name))
        sweeps += _sweep_rows(network, samples, split, result, name)
        risks.append(risk_rows(network, samples, _usable(split, ROUNDS[name]), result, name))
    order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(study.seed))
    for count in study.sample_counts:
        # with all samples the round has been measured above
        if count < len(split.train):
            fewer = replace(split, train=np.sort(split.train[order[:count].numpy()]))
            result, unguarded = _personalise(study, network, samples, fewer, ROUNDS["hard labels"], features)
            exits += _exit_rows(network, result, "hard labels", unguarded, whole=False)
    tables = {"exits": pd.DataFrame(exits), "policies": pd.DataFrame(policies), "sweeps": pd.DataFrame(sweeps)}
    return {**tables, "risks": pd.concat(risks)}


def _personalise(
    study: Study,
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    how: Round,
    features: FeatureCache,
) -> tuple[Personalisation, list[float]]:
    """Return a user's round, and the test accuracies of the M+1 exits as training left them, before the guard."""
    usable = _usable(split, how)
    settings = PersonalisationSettings(
        weights=loss_weights(how.scheme, labelled=0, temperature=study.temperature),
        epochs=study.epochs,
        rule="paper",
        schedule=how.schedule,
        use_prior=how.use_prior,
    )
    labels = usable_labels(samples, usable, settings)
    shifts = class_shifts(network, features, labels, usable, settings, study.seed, samples.client_id, 1)
    result = personalise(network, samples, usable, settings, seed=study.seed, features=features, shifts=shifts)
    trained = run_exits(shifted(result.trained, shifts), with_last_shift(features, shifts[-1]), split.test)
    return result, [float(accuracy) for accuracy in trained.accuracies(samples.labels[split.test])]


def _usable(split: SampleSplit, how: Round) -> SampleSplit:
    """Return the split as a device knows it that has labels only where the scheme learns from them."""
    return split if how.scheme == "supervised" else replace(split, labelled=np.zeros_like(split.labelled))


def _exit_rows(
    network: MultiExitNetwork, result: Personalisation, scheme: str, unguarded: list[float], *, whole: bool
) -> list[dict[str, Any]]:
    report = result.report
    before, after = report.exits_at(Stage.BEFORE), report.exits_at(Stage.AFTER)
    return [
        {
            "user": report.client_id,
            "scheme": scheme,
            "num_train": report.num_train,
            "num_test": report.num_test,
            "whole": whole,
            "exit": old.exit,
            "macs": network.costs.alone_macs(old.exit),
            "params": network.costs.alone_params(old.exit),
            "before": old.accuracy,
            "after": new.accuracy,
            "unguarded": unguarded[old.exit],
        }
        for old, new in zip(before, after, strict=True)
    ]


def _policy_row(result: Personalisation, scheme: str) -> dict[str, Any]:
    report = result.report
    names = ("accuracy_original", "accuracy_before", "accuracy_after", "mean_macs", "mean_macs_before", "original_macs")
    own = {name: getattr(report, name) for name in names}
    after = report.exits_at(Stage.AFTER)
    rates = {f"rate_{row.exit}": row.exit_rate for row in after}
    kept = {f"kept_{row.exit}": row.kept for row in after}
    return {"user": report.client_id, "scheme": scheme, "threshold": report.threshold, **own, **rates, **kept}


def _sweep_rows(
    network: MultiExitNetwork, samples: UserSamples, split: SampleSplit, result: Personalisation, scheme: str
) -> list[dict[str, Any]]:
    """Return the operating points on the test part with all exits in use, with the global and the personal exits."""
    exits = tuple(range(network.num_exits))
    stages = {"after": result.outputs.test}
    if scheme == "hard labels":
        stages["before"] = result.outputs_before.test
    rows: list[dict[str, Any]] = []
    for stage, outputs in stages.items():
        correct = outputs.predictions == samples.labels[split.test]
        for point in sweep(outputs.confidences, correct, exits, network.costs.leaving_macs(exits)):
            rates = {f"rate_{exit}": rate for exit, rate in enumerate(point.exit_rates)}
            whose = {"user": samples.client_id, "scheme": scheme, "stage": stage}
            costs = {"threshold": point.threshold, "accuracy": point.accuracy, "mean_macs": point.cost}
            rows.append({**whose, **costs, **rates})
    return rows
