r"""How far new users' exits are from where they start: pretrained, shared and meta-learned exits.

    persephonee pretrain --from models/writers --meta reptile --out models/writers-reptile
    python -m persephonee.experiments.meta_learning.experiment --model models/writers \
        --start reptile=models/writers-reptile \
        --start shared=runs/shared/model --out docs/images

Judged on users whom no training saw, with the device's own exit training and no guard: an exit that gets worse counts
as worse. Writes `meta-learning-DATA.parquet` (a row per user, start, samples, epochs and exit), `.csv` (means over
users, see `summarise`) and the figure, `.png` and `.svg`.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.evaluation import run_exits
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.training.exit_training import train_exits
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import Partitions, UserSamples
from persephonee.data_partitions.settings import Dataset, DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples
from persephonee.experiments.meta_learning.figure import draw_starts
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.atomic_files import check_writable, write_bytes_atomically, write_text_atomically
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network
from persephonee.server.report.figure_style import figure_style, save_figure

logger = logging.getLogger("persephonee.meta_learning")

PRETRAINED = "pretrained"
EPOCHS = (1, 3, 10)
"""Passes over a new user's samples; 0 is measured in any case."""
SAMPLES = (10, 25, 50)
"""Training samples of a new user; all are measured in any case."""
ALL = "all"
SEED = 0


def load_starts(model: Path, others: Mapping[str, Path]) -> tuple[MultiExitNetwork, dict[str, nn.ModuleList], set[str]]:
    """Return the network, the exits to start from by name, and the users whom one of them may have seen.

    Raises:
        ClientSettingsError: other exits belong to another backbone.
    """
    network, metadata = load_network(model)
    network.freeze_backbone()
    starts, seen = {PRETRAINED: network.heads}, set(metadata.trained_on)
    for name, path in others.items():
        if not path.is_dir():
            logger.warning("skipped %s exits: there is no %s", name, path)
            continue
        other, known = load_network(path)
        if other.backbone_fingerprint != network.backbone_fingerprint:
            raise ClientSettingsError(f"{path} has another backbone than {model}: take exits of the same model.")
        starts[name] = other.heads
        seen |= {*known.trained_on, *_took_part(path.parent)}
    return network, starts, seen


def _took_part(run: Path) -> set[str]:
    """Return the clients of a run folder; nobody where the model lies elsewhere."""
    table = run / "clients.parquet"
    return set(pd.read_parquet(table, columns=["client_id"]).client_id) if table.exists() else set()


def held_out_users(partitions: Partitions, seen: set[str], count: int) -> list[tuple[UserSamples, SampleSplit]]:
    """Return `count` users, or as many as there are, who have samples enough for every number of `SAMPLES`."""
    ids = partitions.client_ids
    candidates = [index for index in range(len(ids)) if ids[index] not in seen]
    users = []
    for index in np.random.default_rng(SEED).permutation(candidates):
        samples = partitions.load_partition(int(index))
        try:
            split = split_samples(samples, SplitSettings(), SEED)
        except UserTooSmallError:
            continue
        if len(split.train) >= SAMPLES[-1]:
            users.append((samples, split))
        if len(users) == count:
            break
    return users


def measure_user(
    network: MultiExitNetwork, starts: Mapping[str, nn.ModuleList], samples: UserSamples, split: SampleSplit
) -> list[dict[str, Any]]:
    """Return a row for each start, number of samples, number of epochs and exit; the last exit included."""
    features = compute_features(network, samples.images)
    truth = samples.labels[split.test]
    order = torch.as_tensor(split.train)[
        torch.randperm(len(split.train), generator=torch.Generator().manual_seed(SEED))
    ]
    rows: list[dict[str, Any]] = []

    def note(heads: nn.ModuleList, start: str, count: str, epochs: int) -> None:
        accuracies = run_exits(heads, features, split.test).accuracies(truth)
        own = {"user": samples.client_id, "start": start, "samples": count, "epochs": epochs}
        rows.extend({**own, "exit": exit, "accuracy": float(value)} for exit, value in enumerate(accuracies))

    def trained(heads: nn.ModuleList, chosen: Tensor, epochs: int) -> nn.ModuleList:
        own = copy.deepcopy(heads).requires_grad_(True)
        settings = PersonalisationSettings(epochs=epochs)
        # the same order of the same samples for each start
        train_exits(
            own, features, torch.as_tensor(samples.labels), chosen, settings, torch.Generator().manual_seed(SEED)
        )
        return own

    for start, heads in starts.items():
        note(heads, start, ALL, 0)
        for count in (*SAMPLES, ALL):
            chosen = order if count == ALL else order[: int(count)]
            for epochs in EPOCHS:
                note(trained(heads, chosen, epochs), start, str(count), epochs)
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return means over users: start, samples, epochs, exit, accuracy, gain, gain_se, users.

    `gain` is the mean over users of what the same user has more than from the pretrained exits, and `gain_se` its
    standard error.
    """
    keys = ["samples", "epochs", "exit"]
    base = table[table.start == PRETRAINED].set_index(["user", *keys]).accuracy.rename("base")
    joined = table.join(base, on=["user", *keys])
    joined["gain"] = joined.accuracy - joined.base
    groups = joined.groupby(["start", *keys], sort=False)
    means = groups.agg(accuracy=("accuracy", "mean"), gain=("gain", "mean"), users=("user", "nunique"))
    means["gain_se"] = groups.gain.std(ddof=1) / np.sqrt(means.users)
    return means.reset_index()


def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")],
    start: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a model with other exits; repeat it.")] = None,
    dataset: Annotated[Dataset, typer.Option(help="As for the verbs of the command line.")] = "synthetic-writers",
    data_path: Annotated[Path | None, typer.Option(help="Where the data lies, if it is local.")] = None,
    users: Annotated[int, typer.Option(help="Held-out users to judge on.", min=1)] = 20,
    name: Annotated[str, typer.Option(help="Of the data, in the files' names; the data set's by default.")] = "",
) -> None:
    """Measure, draw and print."""
    torch.set_num_threads(1)
    pairs = [text.partition("=") for text in start or []]
    for key, equals, path in pairs:
        if not key or not equals or not path:
            raise typer.BadParameter(f"--start {key}{equals}{path} names no model; write it as NAME=FOLDER.")
    check_writable(out)
    network, metadata = load_network(model)
    partitions = open_fitting(DataSettings(dataset=dataset, data_path=data_path), network, metadata)
    network, starts, seen = load_starts(model, {key: Path(path) for key, _, path in pairs})
    chosen = held_out_users(partitions, seen, users)
    if not chosen:
        raise ClientSettingsError(f"no user of {partitions.name} is held-out and large enough: take other data.")
    rows: list[dict[str, Any]] = []
    for samples, split in track(chosen, "held-out users", console=Console(stderr=True)):
        rows += measure_user(network, starts, samples, split)
    table, file = pd.DataFrame(rows), f"meta-learning-{name or dataset}"
    means = summarise(table)
    write_bytes_atomically(out / f"{file}.parquet", table.to_parquet(index=False))
    write_text_atomically(out / f"{file}.csv", means.to_csv(index=False, float_format="%.5f"))
    with figure_style():
        save_figure(draw_starts(means, f"{name or dataset}, {len(chosen)} held-out users"), out, file)
    _print(Console(), means, network.num_exits)


def _print(console: Console, means: pd.DataFrame, last: int) -> None:
    """Print the mean over the early exits, and what it is more than from the pretrained exits."""
    early = means[means.exit < last]
    starts: Sequence[str] = list(dict.fromkeys(means.start))
    console.print(f"| samples | epochs | {' | '.join(starts)} |", soft_wrap=True)
    console.print("|---|---|" + "---|" * len(starts), soft_wrap=True)
    for (samples, epochs), part in early.groupby(["samples", "epochs"], sort=False):
        own = part.groupby("start")[["accuracy", "gain"]].mean()
        cells = [f"{own.accuracy[start]:.1%} ({100 * own.gain[start]:+.1f})" for start in starts]
        console.print(f"| {samples} | {epochs} | {' | '.join(cells)} |", soft_wrap=True)


if __name__ == "__main__":
    run_program(main)
