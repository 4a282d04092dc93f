"""`persephonee personalise`: one user's round on this machine, without a server."""

import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.model_graphs import load_for_device
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import (
    DEFAULT_SOURCES,
    AsJson,
    Seed,
    Sources,
    compute_settings,
    data_settings,
    loss_settings,
    refuse_missing_labels,
    runtime_settings,
    schedule_settings,
    source_names,
    split_settings,
)

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network
    from persephonee.clients.personalisation.reports import PersonalisationReport
    from persephonee.clients.personalisation.settings import PersonalisationSettings
    from persephonee.data_partitions.samples import UserSamples
    from persephonee.data_partitions.settings import DataSettings, SplitSettings
    from persephonee.fl_app.settings.app_settings import LossSettings
    from persephonee.multi_exit.settings import ComputeSettings, RuntimeSettings
    from persephonee.multi_exit.storage import ModelMetadata

log = logging.getLogger("persephonee.personalise")

FEW_IMAGES = 4
"""Of which the time tells how fast this machine is."""


@with_groups(
    data=data_settings,
    split=split_settings,
    loss=loss_settings,
    schedule=schedule_settings,
    runtime=runtime_settings,
    compute=compute_settings,
)
def personalise(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    user: Annotated[str, typer.Option(help="The user's id in the data.")],
    store: Annotated[Path, typer.Option(help="Folder of this device: personal exits, policy and state.")],
    data: "DataSettings",
    split: "SplitSettings",
    loss: "LossSettings",
    schedule: "PersonalisationSettings",
    runtime: "RuntimeSettings",
    compute: "ComputeSettings",
    as_json: AsJson = False,
    sources: Sources = DEFAULT_SOURCES,
    seed: Seed = 0,
) -> None:
    """Personalise the early exits to one user, on this device alone; a second call goes on from the first."""
    from persephonee.clients.personalisation.exit_store import ExitStore
    from persephonee.clients.personalisation.personalise import personalise as personalise_user
    from persephonee.clients.personalisation.risk.policy_choice import promise_in_words
    from persephonee.data_partitions.user_splits import split_samples
    from persephonee.multi_exit.atomic_files import check_writable

    refuse_missing_labels(loss, split.labels)
    trains_heads = schedule.schedule == "paper" and loss.weights(split.labels).is_learning
    network, metadata = load_for_device(model, source_names(sources), runtime, compute, trains_heads=trains_heads)
    samples = _load_user(data, user, network, metadata, source_names(sources))
    exit_store = ExitStore(store)
    check_writable(store)
    own = network.exit_state()
    earlier = exit_store.load(network.backbone_fingerprint, own, user, graphs=network.graphs_fingerprint)
    parts = split_samples(samples, split, seed, exit_store.known_parts())
    settings = replace(schedule, weights=loss.weights(split.labels))
    _tell_duration(network, samples, len(parts.train), settings)
    result = personalise_user(
        network,
        samples,
        parts,
        settings,
        store=exit_store,
        round_number=earlier.round + 1 if earlier else 1,
        seed=seed,
        tell=log.info,
    )
    if as_json:
        typer.echo(json.dumps(asdict(result.report), indent=2))
    else:
        promise = (schedule.drop_tolerance, schedule.delta, schedule.drop_reference)
        _show(result.report, store, promise_in_words(result.report.rule, *promise))


def _tell_duration(
    network: "Network", samples: "UserSamples", num_train: int, settings: "PersonalisationSettings"
) -> None:
    """Say how long the round takes where that is long, by the time of a few images, of which the cost is known."""
    from persephonee.clients.personalisation.features import features_of
    from persephonee.server.training.remaining_time import LONG_SECONDS, about

    network.freeze_backbone()
    # the first image warms up
    features_of(network, samples.images[:1])
    begin, few = time.perf_counter(), samples.images[:FEW_IMAGES]
    features_of(network, few)
    seconds_per_mac = (time.perf_counter() - begin) / (len(few) * network.costs.original_macs)
    macs, heads = len(samples) * network.costs.original_macs, sum(row.head_macs for row in network.costs.exit_costs)
    if settings.schedule == "fast":
        macs += len(samples) * heads
    elif settings.weights.is_learning:
        # a backward pass costs twice a forward one
        macs += 3 * heads * num_train * settings.epochs
    seconds = macs * seconds_per_mac
    if seconds > LONG_SECONDS:
        log.info("the round takes %s", about(seconds))


def _load_user(
    data: "DataSettings", user: str, network: "Network", metadata: "ModelMetadata", allowed: tuple[str, ...]
) -> "UserSamples":
    from persephonee.data_partitions.user_ids import find_user
    from persephonee.fl_app.errors import AppError
    from persephonee.fl_app.wire.model_fit import open_fitting

    partitions = open_fitting(data, network, metadata, allowed)
    others = sorted(set(partitions.client_ids) - set(metadata.trained_on))
    choice = f"take another, such as {', '.join(others[:3])}" if others else "no user is left that it was not"
    index = find_user(partitions.client_ids, user)
    if index is None:
        raise AppError(f"{partitions.name} has no user {user}: {choice}.")
    if partitions.client_ids[index] in metadata.trained_on:
        raise AppError(f"the model was trained on user {user}, so the result would flatter it: {choice}.")
    return partitions.load_partition(index)


def _show(report: "PersonalisationReport", store: Path, promise: str) -> None:
    from rich.console import Console

    from persephonee.clients.personalisation.reports import Stage
    from persephonee.commands.results.number_table import number_table

    title = f"User {report.client_id}, round {report.round}, {report.num_test} test samples, in %"
    table = number_table(title, ("MMAC", "before", "after", "leave here", "kept"))
    last = len(report.exits_at(Stage.AFTER)) - 1
    for before, after in zip(report.exits_at(Stage.BEFORE), report.exits_at(Stage.AFTER), strict=True):
        kept = "yes" if after.kept else "no"
        table.add_row(
            "last" if after.exit == last else str(after.exit),
            f"{after.macs / 1e6:.2f}",
            f"{100 * before.accuracy:.1f}",
            f"{100 * after.accuracy:.1f}",
            f"{100 * before.exit_rate:.0f} → {100 * after.exit_rate:.0f}",
            f"{kept}, not retrained" if after.exit in report.rolled_back_exits else kept,
        )
    console = Console()
    console.print(table)
    console.print(
        f"The policy: {report.accuracy_before:.1%} before, {report.accuracy_after:.1%} after, the last exit alone "
        f"{report.accuracy_original:.1%}; {report.mean_macs / 1e6:.2f} of {report.original_macs / 1e6:.2f} MMAC a "
        f"sample at the threshold {report.threshold:g}; {report.seconds_personalise:.1f} s; stored in {store}. "
        f"The rule {report.rule.partition(':')[0]}: {promise}.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
