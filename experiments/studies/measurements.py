"""What the figures share: a study's global model, and every user's rounds under each scheme, as parquet.

OUT/shared/models/DIGEST/   a global model, which studies fraction that make it in the same way, and time.parquet: one
                            row, the CPU seconds that it took
OUT/shared/features/        cached features of the global pool; may be deleted
OUT/shared/STUDY-DIGEST/
  users/ID/exits.parquet    a row per scheme, number of training samples and exit
  users/ID/policies.parquet a row per scheme: the whole early-exit policy
  users/ID/sweeps.parquet   a row per scheme, stage and threshold
  users/ID/risks.parquet    a row per scheme, candidate policy and half of the calibration samples
  users/ID/time.parquet     one row: CPU seconds that the user took; written last: with it a user is done
  latency.parquet           a row per exit: times on this machine
"""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from persephonee.clients.personalisation.profiler import profile_exits
from persephonee.data_partitions.samples import Partitions, UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import choose_users
from persephonee.experiments.studies.models import global_model, personal_users
from persephonee.experiments.studies.studies import Study
from persephonee.experiments.studies.workers import TIME_NAME, load_user, measure_users, write_table, write_time
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata

logger = logging.getLogger("persephonee.figures")

CACHE_NAME = "features"


@dataclass(frozen=True, eq=False)
class Measured:
    """A study's tables and its network.

    Attributes:
        study: what was measured.
        network: the global model.
        metadata: what is known of the global model.
        too_small: users who were chosen and have too few samples to be split.
        exits: user, scheme, num_train, num_test, whole (all of the user's samples), exit, macs, params, before, after,
            unguarded (after training, before the guard, as the paper has none).
        policies: user, scheme, threshold, accuracy_original, accuracy_before, accuracy_after, mean_macs,
            mean_macs_before, original_macs, and per exit whether it is in use (kept_0 ...) and its rate (rate_0 ...).
        sweeps: user, scheme, stage, threshold, accuracy, mean_macs, and the exit rates rate_0 to rate_M.
        risks: user, scheme, reference, candidate, half, samples, believed, lost, cost, test_drop, test_accuracy,
            test_cost, and the exit rates rate_0 to rate_M; see `risk_tables`.
        latency: exit, macs, latency_ms, latency_p95_ms, stage_ms, head_ms, threads, and the machine's load average.
        cpu_seconds: what the model and the users took, in the calls that measured them.
    """

    study: Study
    network: MultiExitNetwork
    metadata: ModelMetadata
    too_small: int
    exits: pd.DataFrame
    policies: pd.DataFrame
    sweeps: pd.DataFrame
    risks: pd.DataFrame
    latency: pd.DataFrame
    cpu_seconds: float


def measure(study: Study, out: Path, processes: int = 1) -> Measured:
    """Measure a study, or take what an earlier call with the same settings left in `out`.

    Args:
        study: what is measured.
        out: folder for everything.
        processes: how many processes measure users at the same time, at least 1.

    Raises:
        DataError: the data is missing or broken.
        ServerError: the global model cannot be trained.
    """
    # users whom an earlier version measured have other tables
    folder = out / "shared" / f"{study.name}-{_digest((study, 'references'))}"
    own = (study.model_folder, study.tuned_classifier, study.exit_loss, study.training_domain, study.calibration_users)
    makes_model = (study.pool, study.model, *own)
    model_folder = out / "shared" / "models" / _digest(makes_model)
    begin = time.process_time()
    network, metadata = global_model(study, model_folder, out / "shared" / CACHE_NAME)
    if not (model_folder / TIME_NAME).exists():
        write_time(begin, model_folder / TIME_NAME)
    partitions = personal_users(study)
    chosen = choose_users(partitions.client_ids, study.num_users, study.seed, exclude=metadata.trained_on)
    users = _large_enough(partitions, chosen)
    measure_users(study, network, partitions, users, folder / "users", model_folder=model_folder, processes=processes)
    return Measured(
        study,
        network,
        metadata,
        len(chosen) - len(users),
        _read(folder, users, "exits"),
        _read(folder, users, "policies"),
        _read(folder, users, "sweeps"),
        _read(folder, users, "risks"),
        _latency(network, load_user(partitions, users[0]), folder / "latency.parquet"),
        _seconds([model_folder / TIME_NAME, *(folder / "users" / user / TIME_NAME for user in users)]),
    )


def _large_enough(partitions: Partitions, users: Sequence[str]) -> list[str]:
    least, counts = SplitSettings().min_samples, dict(zip(partitions.client_ids, partitions.counts, strict=True))
    return [user for user in users if counts[user] >= least]


def _latency(network: MultiExitNetwork, samples: UserSamples, path: Path) -> pd.DataFrame:
    if not path.exists():
        # before our own work counts
        load = os.getloadavg()[0]
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
                "load": load,
            }
            for row in profile.exits
        ]
        write_table(pd.DataFrame(rows), path)
    return pd.read_parquet(path)


def _digest(settings: object) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def _seconds(paths: Sequence[Path]) -> float:
    return float(sum(pd.read_parquet(path).seconds.sum() for path in paths))


def _read(folder: Path, users: Sequence[str], name: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(folder / "users" / user / f"{name}.parquet") for user in users])
