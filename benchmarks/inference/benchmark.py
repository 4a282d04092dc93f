"""Benchmark of personal inference: `python -m persephonee.benchmarks.inference.benchmark --model MODEL --out DIR`.

1. The engine's overhead at batch 1: against the same stages and heads called by hand, at each exit.
2. The speed-up: each user's calibrated policy against the original network through the same engine, on the user's
   test samples, at batch 1 and 32, on PyTorch against PyTorch and on ONNX Runtime against ONNX Runtime.
3. Latency against MACs per exit (Fig. 6b), with Pearson's correlation.

The two sides of a ratio are timed in turn in the same run; times are medians over the repetitions.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
import typer
from numpy.typing import NDArray

from persephonee.benchmarks.inference import engine_overhead
from persephonee.benchmarks.inference.engine_overhead import overhead_rows, policy_of
from persephonee.benchmarks.interleaved import Call, time_pairs
from persephonee.benchmarks.machine import describe_machine
from persephonee.benchmarks.result_tables import check_place, write_result
from persephonee.benchmarks.users import choose, data_name
from persephonee.clients.inference.engine import Engine
from persephonee.clients.inference.inference_engine import InferenceEngine
from persephonee.clients.inference.onnx_engine import OnnxEngine
from persephonee.clients.inference.onnx_export import export_onnx
from persephonee.clients.personalisation.exit_store import ExitStore, StoredExits
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.profiler import profile_exits
from persephonee.clients.personalisation.settings import Cost, PersonalisationSettings, loss_weights
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import DEFAULT_SOURCES, data_settings, source_names
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.samples import Partitions, UserSamples, to_float
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.exit_weights import as_arrays
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network

BATCH_SIZES = (1, 32)
Images = np.ndarray[Any, np.dtype[np.float32]]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A user's personal network and test samples."""

    stored: StoredExits
    labels: str
    """How much the user labelled: "all", "none", or "as stored"."""
    images: Images
    """float32 [N, C, H, W] in [0, 1]."""
    truth: np.ndarray[Any, np.dtype[np.int64]]


def speed_rows(network: MultiExitNetwork, subject: Subject, original_onnx: Path, repeats: int) -> list[Row]:
    """Time a user's policy against the original network, eager and on ONNX Runtime, at each batch size."""
    typer.echo(f"User {subject.stored.client_id}, labels: {subject.labels}", err=True)
    personal = InferenceEngine(network, subject.stored.policy, last_shift=subject.stored.last_shift)
    network.load_exit_state(subject.stored.exit_weights)
    original = InferenceEngine(network, policy_of(network, 1.0, ()))
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(network, subject.stored, Path(folder))
        onnx = OnnxEngine(Path(folder), threads=threads)
        rows = _rows_of(personal, original, subject, "PyTorch", repeats)
        return rows + _rows_of(onnx, OnnxEngine(original_onnx, threads=threads), subject, "ONNX Runtime", repeats)


def _rows_of(personal: Engine, original: Engine, subject: Subject, runtime: str, repeats: int) -> list[Row]:
    predictions, reference = personal.infer(subject.images), original.infer(subject.images)
    common = {
        "user": subject.stored.client_id,
        "labels": subject.labels,
        "runtime": runtime,
        "threshold": personal.policy.threshold,
        "exits": " ".join(map(str, personal.policy.exits_in_use)),
        "accuracy": float((predictions.labels == subject.truth).mean()),
        "accuracy_original": float((reference.labels == subject.truth).mean()),
        "left_early": float((predictions.exit_indices < personal.policy.num_exits).mean()),
    }
    rows = []
    for size in BATCH_SIZES:
        batches = [subject.images[i : i + size] for i in range(0, len(subject.images), size)]
        times = time_pairs([(_call(personal, batch), _call(original, batch)) for batch in batches], repeats)
        low, high = times.ratio_quartiles
        per_image = 1 / len(subject.images)
        rows.append(
            {
                **common,
                "batch": size,
                "policy_ms": float(np.median(times.first, axis=0).sum() * per_image),
                "original_ms": float(np.median(times.second, axis=0).sum() * per_image),
                "speed_up": times.ratio,
                "speed_up_q25": low,
                "speed_up_q75": high,
            }
        )
    return rows


def latency_rows(network: MultiExitNetwork, samples: UserSamples) -> list[Row]:
    """Return latency and MACs of a network with one exit only, for each exit."""
    profile = profile_exits(network, network.heads, samples.images, samples.labels)
    return [
        {
            "exit": row.exit,
            "mmac": network.costs.alone_macs(row.exit) / 1e6,
            "latency_ms": row.latency_ms,
            "latency_p95_ms": row.latency_p95_ms,
        }
        for row in profile.exits
    ]


def _call(engine: Engine, images: Images) -> Call:
    return lambda: engine.infer(images)


def subjects_of(
    network: MultiExitNetwork, samples: UserSamples, schedule: PersonalisationSettings, seed: int
) -> list[Subject]:
    """Personalise one user twice: with hard labels, and with none."""
    subjects = []
    for name, share in (("all", 1.0), ("none", 0.0)):
        split = split_samples(samples, SplitSettings(labels=share), seed)
        settings = replace(schedule, weights=loss_weights("auto", share))
        result = personalise(network, samples, split, settings, seed=seed)
        stored = StoredExits(
            client_id=samples.client_id,
            round=1,
            backbone_fingerprint=network.backbone_fingerprint,
            policy=result.policy,
            exit_weights=result.exit_weights,
        )
        subjects.append(_subject(stored, name, samples, split.test))
    return subjects


def _subject(stored: StoredExits, labels: str, samples: UserSamples, test: NDArray[np.int64]) -> Subject:
    images, truth = to_float(samples.images[test]).numpy(), samples.labels[test]
    return Subject(stored=stored, labels=labels, images=images, truth=truth)


@with_groups(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    store: Annotated[Path | None, typer.Option(help="A device's store: its user only, as it is.")] = None,
    users: Annotated[int, typer.Option(help="How many users to personalise, without --store.", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="Of PyTorch and of ONNX Runtime.", min=1)] = 1,
    repeats: Annotated[int, typer.Option(help="Timed passes over a user's test samples.", min=1)] = 7,
    cost: Annotated[Cost, typer.Option(help="What calibration saves.")] = "macs",
    sources: Annotated[str, typer.Option(help="Where backbones may come from.")] = DEFAULT_SOURCES,
    seed: Annotated[int, typer.Option(help="Of the choice of users and of the exit training.")] = 0,
) -> None:
    """Measure personal inference on this machine."""
    torch.set_num_threads(threads)
    check_place(out, "inference")
    network, metadata = load_network(model, source_names(sources))
    partitions = open_fitting(data, network, metadata)
    fingerprint, own = network.backbone_fingerprint, network.exit_state()
    stored = ExitStore(store).load(fingerprint, own, None) if store is not None else None
    if store is not None and stored is None:
        raise typer.BadParameter(f"{store} holds no personal exits.")
    chosen = (stored.client_id,) if stored else choose(partitions, users, seed, metadata.trained_on)
    samples = {user: _load(partitions, user) for user in chosen}
    first = next(iter(samples.values()))
    overhead = overhead_rows(network, to_float(first.images).numpy())
    latency = latency_rows(network, first)
    if stored:
        split = split_samples(first, SplitSettings(), seed, stored.parts)
        subjects = [_subject(stored, "as stored", first, split.test)]
    else:
        schedule = PersonalisationSettings(cost=cost, rule="paper")
        subjects = [s for user in chosen for s in subjects_of(network, samples[user], schedule, seed)]
    with tempfile.TemporaryDirectory() as folder:
        unpersonal = replace(
            subjects[0].stored,
            policy=policy_of(network, 1.0, ()),
            exit_weights=as_arrays(network.exit_state()),
            client_id="original",
        )
        export_onnx(network, unpersonal, Path(folder))
        speed = [row for subject in subjects for row in speed_rows(network, subject, Path(folder), repeats)]
    tables = {"overhead": overhead, "speed": speed, "latency": latency}
    about = {
        "machine": describe_machine(),
        "onnxruntime": onnxruntime.__version__,
        "dataset": data_name(data),
        "backbone": network.spec.backbone.split(":")[-1],
        "input_size": network.spec.input_size,
        "repeats": repeats,
        "overhead_repeats": engine_overhead.REPEATS,
    }
    write_result(out, "inference", about, {name: pd.DataFrame(rows) for name, rows in tables.items()})


def _load(partitions: Partitions, user: str) -> UserSamples:
    if user not in partitions.client_ids:
        raise typer.BadParameter(f"{partitions.name} has no user {user}, whose exits the store holds.")
    return partitions.load_partition(partitions.client_ids.index(user))


if __name__ == "__main__":
    run_program(main)
