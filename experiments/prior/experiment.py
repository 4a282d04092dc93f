r"""What the user's class frequencies give, without labels and with them: each exit, the policy, and who loses by it.

    python -m persephonee.experiments.prior.experiment --model MODEL --dataset imagefolder --data-path FOLDER \
        --image-size 96 --label-skew-width 5 --users 40 --out runs/prior

Every user personalises under each scheme, on samples that chose nothing; the accuracies of exits are those of the exits
as training left them, before the guard, as the paper has none, and those of the policy are of what is deployed. The
model has to carry a calibration. Prints two tables and writes the users' rows as parquet.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.evaluation import ExitOutputs, apply_policy, run_exits
from persephonee.clients.personalisation.exit_shifts import class_shifts, no_shifts, shifted, with_last_shift
from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.labels import usable_labels
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings, Rule, Schedule, Scheme, loss_weights
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import Dataset, DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, choose_users, split_samples
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.atomic_files import check_writable
from persephonee.multi_exit.exit_weights import ExitWeights
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import ComputeSettings, DeviceKind
from persephonee.multi_exit.storage import load_network

RESAMPLES = 2_000
CASES: tuple[tuple[str, Scheme, bool], ...] = (
    ("before", "prior", False),
    ("prior", "prior", True),
    ("self-distillation", "self-distillation", False),
    ("prior, self-distillation", "self-distillation", True),
    ("labels", "supervised", False),
    ("prior, labels", "supervised", True),
)
"""Name, scheme, and whether the user's class frequencies count."""


def main(
    model: Annotated[Path, typer.Option(help="Folder of the global model, with its calibration.")],
    out: Annotated[Path, typer.Option(help="Folder of the tables.")],
    dataset: Annotated[Dataset, typer.Option(help="Where the users come from.")] = "synthetic-writers",
    data_path: Annotated[Path | None, typer.Option(help="Where the data is, if it is local.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images of an image folder, in px.")] = None,
    label_skew_width: Annotated[float, typer.Option(help="Of a user's popularity of classes, in classes.")] = 5.0,
    samples_per_user: Annotated[int, typer.Option(help="Of an image folder's users.")] = 400,
    num_train: Annotated[int | None, typer.Option(help="Training samples a user has; all by default.", min=1)] = None,
    users: Annotated[int, typer.Option(help="How many personalise.", min=1)] = 40,
    schedule: Annotated[Schedule, typer.Option(help="Of the exit training.")] = "fast",
    temperature: Annotated[float, typer.Option(help="T of self-distillation.")] = 1.0,
    rule: Annotated[Rule, typer.Option(help="Which rule chooses the policy.")] = "paper",
    adapt_last_exit: Annotated[bool, typer.Option(help="Let the policy's last exit count on the frequencies.")] = True,
    device: Annotated[DeviceKind, typer.Option(help="What computes.")] = "auto",
    sources: Annotated[str, typer.Option(help="Where the model's backbone may come from.")] = "torchvision",
) -> None:
    """Compare the schemes over the users."""
    # refuses a temperature that is none
    loss_weights("auto", 0, temperature)
    check_writable(out)
    network, metadata = load_network(model, tuple(sources.split(",")))
    network.freeze_backbone().to(ComputeSettings(device=device).torch_device())
    data = DataSettings(
        dataset=dataset, data_path=data_path, image_size=image_size, label_skew_width=label_skew_width,
        samples_per_user=samples_per_user, num_users=users,
    )  # fmt: skip
    partitions = open_fitting(data, network, metadata)
    chosen = choose_users(partitions.client_ids, users, seed=0, exclude=metadata.trained_on)
    rows: list[dict[str, Any]] = []
    stranger: Judged | None = None
    for number, user in enumerate(chosen):
        samples = partitions.load_partition(partitions.client_ids.index(user))
        try:
            split = split_samples(samples, SplitSettings(), seed=0)
        except UserTooSmallError:
            continue
        if num_train is not None:
            order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(number))
            split = replace(split, train=np.sort(split.train[order[:num_train].numpy()]))
        settings = PersonalisationSettings(schedule=schedule, rule=rule, adapt_last_exit=adapt_last_exit)
        features = compute_features(network, samples.images)
        rows += user_rows(network, samples, split, features, settings, temperature, stranger)
        stranger = Judged(features=features, samples=split.test, truth=samples.labels[split.test])
    if not rows:
        raise ClientSettingsError(f"no user of {partitions.name} has samples enough: take other data.")
    table = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    name = f"{dataset}-{schedule}-{label_skew_width:g}-{num_train or 'all'}"
    table.to_parquet(out / f"{name}.parquet", index=False)
    typer.echo(f"{table.user.nunique()} users, accuracies in %, changes against the global model's exits")
    for part in (summary(table, network.num_exits), changes(table, network.num_exits), policies(table)):
        typer.echo(part.to_string(float_format="%.2f") + "\n")


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Test samples: their place among a user's features, and their classes."""

    features: FeatureCache
    samples: NDArray[np.int64]
    truth: NDArray[np.int64]

    @property
    def raw_predictions(self) -> NDArray[np.int64]:
        """What the original network answers."""
        predictions: NDArray[np.int64] = self.features.last_exit_logits[self.samples].argmax(axis=1)
        return predictions


def user_rows(
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    features: FeatureCache,
    settings: PersonalisationSettings,
    temperature: float,
    stranger: Judged | None,
) -> list[dict[str, Any]]:
    """Return a row for each case: the accuracies of the M+1 exits and of the policy, on the user's and on a stranger's
    test samples, what the policy costs, and how long the class frequencies took.
    """
    own_test = Judged(features=features, samples=split.test, truth=samples.labels[split.test])
    rows = []
    for name, scheme, counts in CASES:
        labelled = scheme == "supervised"
        of_case = split if labelled else replace(split, labelled=np.zeros_like(split.labelled))
        own = replace(settings, weights=loss_weights(scheme, float(labelled), temperature), use_prior=counts)
        begin = time.perf_counter()
        labels = usable_labels(samples, of_case, own)
        shifts = class_shifts(network, features, labels, of_case, own, 0, samples.client_id, 1)
        prior_ms = 1e3 * (time.perf_counter() - begin)
        done = personalise(network, samples, of_case, own, features=features, shifts=shifts)
        exits = outputs_of(done.trained, shifts, own_test).accuracies(own_test.truth)
        row = {
            "user": samples.client_id,
            "case": name,
            "num_train": len(split.train),
            "num_test": len(split.test),
            "is_shifted": bool(shifts.any()),
            "prior_ms": prior_ms,
            **{f"exit_{i}": float(exits[i]) for i in range(len(exits))},
            "original": done.report.accuracy_original,
            "policy": done.report.accuracy_after,
            "macs": done.report.mean_macs / done.report.original_macs,
            "rolled_back": len(done.report.rolled_back_exits),
            "seconds": done.report.seconds_personalise,
        }
        if stranger is not None:
            # the early exits in force have theirs in their weights already
            last_alone = no_shifts(network)
            last_alone[-1] = 0 if done.shifts is None else done.shifts[-1]
            in_force = outputs_of(done.exit_weights, last_alone, stranger)
            row["stranger_policy"] = apply_policy(in_force, done.policy, stranger.truth, network.costs).accuracy
            row["stranger_original"] = float((stranger.raw_predictions == stranger.truth).mean())
        rows.append(row)
    return rows


def outputs_of(exit_weights: ExitWeights, shifts: NDArray[np.float32], judged: Judged) -> ExitOutputs:
    """Return what exits answer on test samples, with shifts [M+1, K] on top."""
    return run_exits(shifted(exit_weights, shifts), with_last_shift(judged.features, shifts[-1]), judged.samples)


def summary(table: pd.DataFrame, num_exits: int) -> pd.DataFrame:
    """Return the mean accuracies over users in %, a row per case: of the exits, and of the original network."""
    columns = [f"exit_{i}" for i in range(num_exits + 1)]
    found = 100 * table.groupby("case", sort=False)[[*columns, "original"]].mean()
    return found.assign(shifted=100 * table.groupby("case", sort=False)["is_shifted"].mean())


def changes(table: pd.DataFrame, num_exits: int) -> pd.DataFrame:
    """Return each case's gain over `before` in points, a row per case and exit: mean, 95 % interval over users by the
    paired bootstrap, and how many percent of the users lost more than 2 points.
    """
    rng, rows = np.random.default_rng(0), []
    by_case = {case: part.set_index("user") for case, part in table.groupby("case", sort=False)}
    for case, part in by_case.items():
        for exit in range(num_exits + 1):
            gains: NDArray[np.float64] = 100 * (part[f"exit_{exit}"] - by_case["before"][f"exit_{exit}"]).to_numpy()
            means = gains[rng.integers(len(gains), size=(RESAMPLES, len(gains)))].mean(axis=1)
            low, high = np.quantile(means, (0.025, 0.975))
            row = {"case": case, "exit": exit, "gain": gains.mean(), "low": low, "high": high}
            rows.append({**row, "losers": 100 * (gains < -2).mean()})
    found = pd.DataFrame(rows)
    return found[found.case != "before"].set_index(["case", "exit"])


def policies(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is deployed, a row per case.

    Accuracies are in %, the cost is a fraction of the original's, `prior_ms` the time of the estimate, and `seconds`
    that of the round on features that are there.
    """
    names = ["policy", "original", "stranger_policy", "stranger_original", "rolled_back", "macs", "prior_ms", "seconds"]
    found = table.groupby("case", sort=False)[names].mean()
    percent = ["policy", "original", "stranger_policy", "stranger_original"]
    return found.assign(**{name: 100 * found[name] for name in percent})


if __name__ == "__main__":
    run_program(main)
