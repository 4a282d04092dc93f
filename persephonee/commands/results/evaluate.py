"""`persephonee evaluate`: what a model, a device or an exported network is worth on images of one's own."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import (
    DEFAULT_SOURCES,
    AsJson,
    Seed,
    Sources,
    compute_settings,
    data_settings,
    runtime_settings,
    source_names,
    split_settings,
)
from persephonee.commands.results.engines import Exported, Model, OpenedEngine, Store, Threshold, open_engine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from persephonee.clients.inference.scoring import Score
    from persephonee.data_partitions.samples import Partitions, UserSamples
    from persephonee.data_partitions.settings import DataSettings, SplitSettings
    from persephonee.multi_exit.settings import ComputeSettings, RuntimeSettings
    from persephonee.server.intervals import Estimate
    from persephonee.server.training.remaining_time import Told

    Samples = tuple[NDArray[np.uint8], NDArray[np.int64]]


log = logging.getLogger("persephonee.evaluate")


@dataclass(frozen=True, kw_only=True)
class EvaluatedExit:
    """One exit in use, or the last exit."""

    exit: int
    is_last: bool
    accuracy: "Estimate"
    exit_rate: float
    """Fraction of the samples that leave here."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means and 95 % bootstrap intervals, over users where there are two or more, and over samples otherwise."""

    name: str
    num_samples: int
    users: tuple[str, ...]
    threshold: float
    accuracy: "Estimate"
    """Of the policy."""
    confidence: float
    """Mean over samples, of the exit that answered."""
    mean_macs: "Estimate | None"
    """A sample's; None for an exported network, which does not say what it costs."""
    original_macs: int | None
    exits: tuple[EvaluatedExit, ...]


@with_groups(data=data_settings, split=split_settings, runtime=runtime_settings, compute=compute_settings)
def evaluate(
    *,
    context: typer.Context,
    model: Model = None,
    store: Store = None,
    exported: Exported = None,
    threshold: Threshold = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder with a folder of images for each class, in place of DATA.")
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option(help="A user in DATA; may be given several times. A store's own by default.")
    ] = None,
    data: "DataSettings",
    split: "SplitSettings",
    runtime: "RuntimeSettings",
    compute: "ComputeSettings",
    as_json: AsJson = False,
    sources: Sources = DEFAULT_SOURCES,
    seed: Seed = 0,
) -> None:
    """Measure accuracy, exit rates and cost of a model, a device's store or an exported network.

    Users whose samples trained the model are left out. Of the user to whom the exits are personal, only the test part
    counts: name the same split and seed as `personalise` had.
    """
    from persephonee.clients.inference.scoring import BATCH, score
    from persephonee.commands.results.images import labelled_batches
    from persephonee.commands.run_settings import given_options
    from persephonee.server.training.remaining_time import shown_work

    strangers = sorted(
        {key.replace("-", "_") for key in given_options(context)}
        & {*data_settings.names, *split_settings.names, "user"}
    )
    if images is not None and strangers:
        raise typer.BadParameter(f"--images is the data: leave out --{strangers[0].replace('_', '-')}.")
    opened = open_engine(model, store, exported, threshold, sources, runtime, compute)
    if images is not None:
        with shown_work(log, "answering", "images") as told:
            scores = {"": score(opened.engine, labelled_batches(images, opened, BATCH, told))}
    else:
        scores = _score_users(opened, _open_data(opened, data, source_names(sources)), split, user or (), seed)
    found = _evaluation(opened, scores, seed)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)


def _score_users(
    opened: OpenedEngine, partitions: "Partitions", split: "SplitSettings", named: Sequence[str], seed: int
) -> "dict[str, Score]":
    from persephonee.clients.inference.scoring import score
    from persephonee.data_partitions.user_ids import find_user
    from persephonee.fl_app.errors import AppError
    from persephonee.server.training.remaining_time import shown_work

    trained_on = set(opened.model[1].trained_on) if opened.model else set()
    wanted = named or ([opened.client_id] if opened.client_id is not None else partitions.client_ids)
    asked = bool(named) or opened.client_id is not None
    chosen: dict[str, int] = {}
    # all of them are looked for before the first is measured
    for one in wanted:
        index = find_user(partitions.client_ids, one)
        if index is None:
            raise AppError(f"{partitions.name} has no user {one}: name one with --user, or the data that has this one.")
        client_id = partitions.client_ids[index]
        if client_id not in trained_on:
            chosen[client_id] = index
        elif asked:
            raise AppError(f"the model was trained on user {client_id}, so the result would flatter it.")
    if not chosen:
        raise AppError(f"the model was trained on all users of {partitions.name}: name other data.")
    scores: dict[str, Score] = {}
    with shown_work(log, "answering", "users" if len(chosen) > 1 else "images") as told:
        for client_id, index in chosen.items():
            judged = _judged(partitions.load_partition(index), opened, split, seed)
            # of one user the images are counted
            scores[client_id] = score(opened.engine, _batches(judged, told if len(chosen) == 1 else None))
            if len(chosen) > 1:
                told(len(scores), len(chosen))
    return scores


def _open_data(opened: OpenedEngine, data: "DataSettings", allowed: tuple[str, ...]) -> "Partitions":
    from persephonee.data_partitions.opening import open_partitions
    from persephonee.data_partitions.samples import ModelClasses
    from persephonee.fl_app.errors import AppError
    from persephonee.fl_app.wire.model_fit import open_fitting

    if opened.model is not None:
        return open_fitting(data, *opened.model, allowed)
    engine = opened.engine
    classes = ModelClasses(count=engine.num_classes, names=opened.class_names)
    partitions = open_partitions(data, model=classes, allowed=allowed)
    if (partitions.num_classes, partitions.image_shape) != (engine.num_classes, engine.input_shape):
        raise AppError(
            f"{partitions.name} has other classes or other images than {opened.name} takes: name other data."
        )
    return partitions


def _judged(samples: "UserSamples", opened: OpenedEngine, split: "SplitSettings", seed: int) -> "Samples":
    """Return the samples that trained and calibrated nothing."""
    import numpy as np

    images, labels = np.asarray(samples.images), np.asarray(samples.labels)
    if samples.client_id != opened.client_id:
        return images, labels
    from persephonee.data_partitions.user_splits import split_samples

    test = np.asarray(split_samples(samples, split, seed, opened.known() if opened.known else None).test)
    return images[test], labels[test]


def _batches(samples: "Samples", told: "Told | None") -> "Iterator[Samples]":
    from persephonee.clients.inference.scoring import BATCH

    images, labels = samples
    for start in range(0, len(labels), BATCH):
        yield images[start : start + BATCH], labels[start : start + BATCH]
        if told is not None:
            told(min(start + BATCH, len(labels)), len(labels))


def _evaluation(opened: OpenedEngine, scores: "dict[str, Score]", seed: int) -> Evaluation:
    import numpy as np

    from persephonee.clients.inference.scoring import joined
    from persephonee.server.intervals import draw_users, estimate

    together = joined(list(scores.values()))
    units = list(scores.values()) if len(scores) > 1 else [together]
    number = len(units) if len(units) > 1 else len(together.policy_right)
    draws = draw_users(number, seed)

    def over_units(values: Any) -> "Estimate":
        each = [np.asarray(values(one), dtype=np.float64) for one in units]
        return estimate(np.array([one.mean() for one in each]) if len(each) > 1 else each[0], draws)

    costs = opened.leaving_macs
    return Evaluation(
        name=opened.name,
        num_samples=len(together.policy_right),
        users=tuple(name for name in scores if name),
        threshold=opened.engine.policy.threshold,
        accuracy=over_units(lambda one: one.policy_right),
        confidence=float(together.confidences.mean()),
        mean_macs=over_units(lambda one: one.macs(costs)) if costs else None,
        original_macs=opened.model[0].costs.original_macs if opened.model else None,
        exits=tuple(
            EvaluatedExit(
                exit=exit,
                is_last=exit == together.exits[-1],
                accuracy=over_units(lambda one, place=place: one.exits_right[place]),
                exit_rate=float((together.exit_indices == exit).mean()),
            )
            for place, exit in enumerate(together.exits)
        ),
    )


def _show(found: Evaluation) -> None:
    from rich.console import Console

    from persephonee.commands.results.number_table import number_table

    users = f"{len(found.users)} users, " if len(found.users) > 1 else ""
    title = f"{found.name}: {users}{found.num_samples} samples, in % (95 % interval)"
    table = number_table(title, ("accuracy", "leave here"))
    for entry in found.exits:
        table.add_row(
            "last" if entry.is_last else str(entry.exit), _percent(entry.accuracy), f"{100 * entry.exit_rate:.1f}"
        )
    table.add_row(f"policy at {found.threshold:g}", _percent(found.accuracy), "100.0")
    console = Console()
    console.print(table)
    if found.mean_macs and found.original_macs:
        cost = found.mean_macs
        console.print(
            f"Cost: {cost.mean / 1e6:.2f} MMAC a sample ({cost.low / 1e6:.2f}–{cost.high / 1e6:.2f}), "
            f"{cost.mean / found.original_macs:.0%} of the original network's.",
            highlight=False,
        )
    else:
        console.print("An exported network does not say what it costs: give --model and --store for that.")


def _percent(value: "Estimate") -> str:
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"
