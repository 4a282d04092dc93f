"""What the figures share: a study's global model, and every user's rounds under each scheme, as parquet.

OUT/shared/STUDY-DIGEST/
  model/                    the global model
  users/ID/exits.parquet    a row per scheme, number of training samples and exit
  users/ID/policies.parquet a row per scheme: the whole early-exit policy
  users/ID/sweeps.parquet   a row per scheme, stage and threshold, written last: with it a user is done
  latency.parquet           a row per exit: times on this machine
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from clients.calibration import sweep
from clients.evaluation import run_exits
from clients.features import FeatureCache, compute_features
from clients.personalisation import Personalisation, personalise
from clients.profiler import profile_exits
from clients.settings import PersonalisationSettings, loss_weights
from data_partitions.opening import open_partitions
from data_partitions.samples import Partitions, UserSamples
from data_partitions.user_splits import SampleSplit, SplitSettings, choose_users, split_samples
from experiments.figure_studies import Study
from multi_exit.atomic_files import write_bytes_atomically
from multi_exit.network import MultiExitNetwork
from multi_exit.storage import load_network
from server.global_model import MODEL_NAME, make_global_model

logger = logging.getLogger("persephonee.figures")

SCHEMES = {
    "hard labels": "supervised",
    "self-distillation": "self-distillation",
    "self-supervision": "self-supervision",
}
"""The figures' names of the schemes of Eq. (1)."""

SEED = 0


@dataclass(frozen=True, eq=False)
class Measured:
    """A study's tables and its network.

    Attributes:
        study: what was measured.
        network: the global model.
        exits: user, scheme, num_train, whole (all of the user's samples), exit, macs, params, before, after.
        policies: user, scheme, threshold, accuracy_original, accuracy_before, accuracy_after, mean_macs,
            mean_macs_before, original_macs, and per exit whether it is in use (kept_0 ...) and its rate (rate_0 ...).
        sweeps: user, scheme, stage, threshold, accuracy, mean_macs, and the exit rates rate_0 to rate_M.
        latency: exit, macs, latency_ms, stage_ms, head_ms.
    """

    study: Study
    network: MultiExitNetwork
    exits: pd.DataFrame
    policies: pd.DataFrame
    sweeps: pd.DataFrame
    latency: pd.DataFrame


def measure(study: Study, out: Path) -> Measured:
    """Measure a study, or take what an earlier call with the same settings left in `out`.

    Raises:
        DataError: the data is missing or broken.
        ServerError: the global model cannot be trained.
    """
    digest = hashlib.sha256(repr(study).encode()).hexdigest()[:8]
    folder = out / "shared" / f"{study.name}-{digest}"
    network, trained_on = _global_model(study, folder / "model")
    partitions = open_partitions(study.data)
    users = choose_users(partitions.client_ids, study.num_users, SEED, exclude=trained_on)
    console = Console(stderr=True)
    shown = track(users, study.title, console=console, disable=not console.is_terminal)
    for done, user in enumerate(shown, start=1):
        if not (folder / "users" / user / "sweeps.parquet").exists():
            _measure_user(study, network, _load(partitions, user), folder / "users" / user)
        if not console.is_terminal and done % max(1, len(users) // 10) == 0:
            logger.info("%s: %d of %d users", study.title, done, len(users))
    return Measured(
        study,
        network,
        _read(folder, users, "exits"),
        _read(folder, users, "policies"),
        _read(folder, users, "sweeps"),
        _latency(network, _load(partitions, users[0]), folder / "latency.parquet"),
    )


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet, atomically."""
    write_bytes_atomically(path, table.to_parquet(index=False))


def _global_model(study: Study, folder: Path) -> tuple[MultiExitNetwork, tuple[str, ...]]:
    if not (folder / MODEL_NAME).exists():
        logger.info("training the global model: %s", study.title)
        make_global_model(study.model, open_partitions(study.data, for_pretraining=True), folder, resume=True)
    network, metadata = load_network(folder, study.model.sources)
    return network.freeze_backbone(), metadata.trained_on


def _load(partitions: Partitions, user: str) -> UserSamples:
    return partitions.load_partition(partitions.client_ids.index(user))


def _measure_user(study: Study, network: MultiExitNetwork, samples: UserSamples, folder: Path) -> None:
    split = split_samples(samples, SplitSettings(), SEED)
    features = compute_features(network, samples.images)
    exits: list[dict[str, Any]] = []
    policies: list[dict[str, Any]] = []
    sweeps: list[dict[str, Any]] = []
    for name, scheme in SCHEMES.items():
        result = _personalise(study, network, samples, split, scheme, features)
        exits += _exit_rows(network, result, name, whole=True)
        policies.append(_policy_row(result, name))
        sweeps += _sweep_rows(network, samples, split, features, result, name)
    order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(SEED))
    for count in study.sample_counts:
        if count <= len(split.train):
            fewer = replace(split, train=split.train[order[:count]].sort().values)
            result = _personalise(study, network, samples, fewer, "supervised", features)
            exits += _exit_rows(network, result, "hard labels", whole=False)
    write_table(pd.DataFrame(exits), folder / "exits.parquet")
    write_table(pd.DataFrame(policies), folder / "policies.parquet")
    write_table(pd.DataFrame(sweeps), folder / "sweeps.parquet")


def _personalise(
    study: Study,
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    scheme: str,
    features: FeatureCache,
) -> Personalisation:
    if scheme != "supervised":
        split = replace(split, labelled=torch.zeros_like(split.labelled))
    settings = PersonalisationSettings(weights=loss_weights(scheme, labelled=0), epochs=study.epochs)
    return personalise(network, samples, split, settings, seed=SEED, features=features)


def _exit_rows(network: MultiExitNetwork, result: Personalisation, scheme: str, *, whole: bool) -> list[dict[str, Any]]:
    report, last = result.report, network.num_exits
    before, after = report.exits[: last + 1], report.exits[last + 1 :]
    return [
        {
            "user": report.client_id,
            "scheme": scheme,
            "num_train": report.num_train,
            "whole": whole,
            "exit": old.exit,
            "macs": network.costs.alone_macs(old.exit),
            "params": network.costs.alone_params(old.exit),
            "before": old.accuracy,
            "after": new.accuracy,
        }
        for old, new in zip(before, after, strict=True)
    ]


def _policy_row(result: Personalisation, scheme: str) -> dict[str, Any]:
    report = result.report
    names = ("accuracy_original", "accuracy_before", "accuracy_after", "mean_macs", "mean_macs_before", "original_macs")
    own = {name: getattr(report, name) for name in names}
    after = [row for row in report.exits if row.stage == "after"]
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
    stages: list[tuple[str, dict[str, torch.Tensor]]] = [("after", result.exits)]
    if scheme == "hard labels":
        stages.append(("before", network.exit_state()))
    own = network.exit_state()
    rows: list[dict[str, Any]] = []
    for stage, state in stages:
        network.load_exit_state(state)
        outputs = run_exits(network.heads, features, split.test)
        correct = outputs.predictions == samples.labels[split.test].numpy()
        for point in sweep(outputs.confidences, correct, exits, network.costs.leaving_macs(exits)):
            rates = {f"rate_{exit}": rate for exit, rate in enumerate(point.exit_rates)}
            whose = {"user": samples.client_id, "scheme": scheme, "stage": stage}
            costs = {"threshold": point.threshold, "accuracy": point.accuracy, "mean_macs": point.cost}
            rows.append({**whose, **costs, **rates})
    network.load_exit_state(own)
    return rows


def _latency(network: MultiExitNetwork, samples: UserSamples, path: Path) -> pd.DataFrame:
    if not path.exists():
        profile = profile_exits(network, network.heads, samples.images, samples.labels, max_samples=50)
        rows = [
            {
                "exit": row.exit,
                "macs": network.costs.alone_macs(row.exit),
                "latency_ms": row.latency_ms,
                "latency_p95_ms": row.latency_p95_ms,
                "stage_ms": row.stage_ms,
                "head_ms": row.head_ms,
                "threads": profile.threads,
            }
            for row in profile.exits
        ]
        write_table(pd.DataFrame(rows), path)
    return pd.read_parquet(path)


def _read(folder: Path, users: Sequence[str], name: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(folder / "users" / user / f"{name}.parquet") for user in users])
