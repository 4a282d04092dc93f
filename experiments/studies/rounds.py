"""One user's personalisation rounds for the figures: each scheme, and hard labels with fewer samples."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from persephonee.clients.personalisation.calibration import sweep
from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.reports import Stage
from persephonee.clients.personalisation.settings import PersonalisationSettings, Scheme, loss_weights
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples
from persephonee.experiments.studies.risk_tables import risk_rows
from persephonee.experiments.studies.studies import Study
from persephonee.multi_exit.exit_weights import as_arrays
from persephonee.multi_exit.network import MultiExitNetwork

SCHEMES: dict[str, Scheme] = {
    "hard labels": "supervised",
    "self-distillation": "self-distillation",
    "self-supervision": "self-supervision",
}
"""The figures' names of the schemes of Eq. (1)."""


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

    def unguarded(result: Personalisation) -> dict[int, float]:
        return _unguarded(network, result, features, split.test, samples.labels[split.test])

    for name in study.schemes:
        result = _personalise(study, network, samples, split, SCHEMES[name], features)
        exits += _exit_rows(network, result, name, unguarded(result), whole=True)
        policies.append(_policy_row(result, name))
        sweeps += _sweep_rows(network, samples, split, features, result, name)
        risks.append(risk_rows(network, samples, _usable(split, SCHEMES[name]), result, name))
    order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(study.seed))
    for count in study.sample_counts:
        # with all samples the round has been measured above
        if count < len(split.train):
            fewer = replace(split, train=np.sort(split.train[order[:count].numpy()]))
            result = _personalise(study, network, samples, fewer, "supervised", features)
            exits += _exit_rows(network, result, "hard labels", unguarded(result), whole=False)
    tables = {"exits": pd.DataFrame(exits), "policies": pd.DataFrame(policies), "sweeps": pd.DataFrame(sweeps)}
    return {**tables, "risks": pd.concat(risks)}


def _personalise(
    study: Study,
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    scheme: Scheme,
    features: FeatureCache,
) -> Personalisation:
    split = _usable(split, scheme)
    weights = loss_weights(scheme, labelled=0, temperature=study.temperature)
    settings = PersonalisationSettings(weights=weights, epochs=study.epochs, rule="paper")
    return personalise(network, samples, split, settings, seed=study.seed, features=features)


def _usable(split: SampleSplit, scheme: Scheme) -> SampleSplit:
    """Return the split as a device knows it that has labels only where the scheme learns from them."""
    return split if scheme == "supervised" else replace(split, labelled=np.zeros_like(split.labelled))


def _unguarded(
    network: MultiExitNetwork,
    result: Personalisation,
    features: FeatureCache,
    test: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> dict[int, float]:
    """Return what the exits that the guard put back would have reached on the test part."""
    if not result.report.rolled_back_exits:
        return {}
    accuracies = run_exits(result.trained, features, test).accuracies(labels)
    return {exit: float(accuracies[exit]) for exit in result.report.rolled_back_exits}


def _exit_rows(
    network: MultiExitNetwork, result: Personalisation, scheme: str, unguarded: dict[int, float], *, whole: bool
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
            "unguarded": unguarded.get(old.exit, new.accuracy),
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
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    features: FeatureCache,
    result: Personalisation,
    scheme: str,
) -> list[dict[str, Any]]:
    """Return the operating points on the test part with all exits in use, with the global and the personal exits."""
    exits = tuple(range(network.num_exits))
    stages = [("after", result.exit_weights)]
    if scheme == "hard labels":
        stages.append(("before", as_arrays(network.exit_state())))
    rows: list[dict[str, Any]] = []
    for stage, state in stages:
        outputs = run_exits(state, features, split.test)
        correct = outputs.predictions == samples.labels[split.test]
        for point in sweep(outputs.confidences, correct, exits, network.costs.leaving_macs(exits)):
            rates = {f"rate_{exit}": rate for exit, rate in enumerate(point.exit_rates)}
            whose = {"user": samples.client_id, "scheme": scheme, "stage": stage}
            costs = {"threshold": point.threshold, "accuracy": point.accuracy, "mean_macs": point.cost}
            rows.append({**whose, **costs, **rates})
    return rows
