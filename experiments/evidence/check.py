"""Each headline of the project in a reduced version: made anew in about two minutes, and compared with a band.

    python -m persephonee.experiments.evidence.check        # make evidence-check

A small CNN learns from 60 built-in writers; others, who chose nothing, personalise it. A band is far wider than what
another seed changes, so that what leaves it is a fault and not a matter of chance. Exits with status 1 if one does.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.reports import Stage
from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule, Scheme, loss_weights
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import Partitions, UserSamples, to_float
from persephonee.data_partitions.seeds import numpy_generator
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import choose_users, split_samples
from persephonee.experiments.studies.studies import SMOKE_SOURCE
from persephonee.fl_app.server_side.held_out_pools import calibrate_model
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata
from persephonee.server.training.global_model import make_global_model
from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
from persephonee.server.training.pretraining_settings import PretrainSettings

WRITERS, SKEWED, CLASSES = 24, 8, 8
"""How many writers personalise; how many users of few classes do; and how many classes each of these has."""
WRITERS_OF_SKEWED = 6
"""A user of few classes has the samples of so many writers, since one writer has a handful of each class."""
MODEL = GlobalModelSettings(
    backbone=f"{SMOKE_SOURCE}:build",
    num_exits=3,
    head="pooled",
    users=UserFractions(personal_users=100, max_users=60),
    training=PretrainSettings(epochs=10, batch_size=32, learning_rate=0.1),
    sources=(SMOKE_SOURCE,),
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A claim in numbers.

    Attributes:
        claim: what holds.
        found: the number.
        least: below it the claim no longer holds.
        most: likewise above it.
        unit: of the numbers.
    """

    claim: str
    found: float
    least: float = -np.inf
    most: float = np.inf
    unit: str = "points"

    @property
    def holds(self) -> bool:
        """Whether the number is inside its band."""
        return bool(self.least <= self.found <= self.most)


def main() -> int:
    """Print the headlines, and return how the process exits."""
    torch.set_num_threads(1)
    begin, console = time.perf_counter(), Console()
    with tempfile.TemporaryDirectory() as folder, console.status("Training a small model"):
        found = headlines(Path(folder) / "model")
    table = Table(title="Headlines, reduced", title_justify="left")
    for column in ("claim", "found", "band", "holds"):
        table.add_column(column, justify="left" if column == "claim" else "right")
    for one in found:
        band = " to ".join(f"{bound:g}" for bound in (one.least, one.most))
        table.add_row(one.claim, f"{one.found:.2f} {one.unit}", band, "yes" if one.holds else "NO")
    console.print(table)
    console.print(f"{WRITERS} writers, {SKEWED} users of {CLASSES} classes; {time.perf_counter() - begin:.0f} s.")
    return 0 if all(one.holds for one in found) else 1


def headlines(folder: Path) -> list[Headline]:
    """Make the model in `folder`, personalise, and return what came of it."""
    partitions = open_partitions(DataSettings(num_writers=240), for_pretraining=True)
    network, metadata = _model(partitions, folder)
    chosen = choose_users(partitions.client_ids, WRITERS + SKEWED * WRITERS_OF_SKEWED, 0, exclude=metadata.trained_on)
    users = [partitions.load_partition(partitions.client_ids.index(user)) for user in chosen]
    writers, others = users[:WRITERS], users[WRITERS:]
    skewed = [_of_few_classes(others[i::SKEWED], i) for i in range(SKEWED)]
    image = to_float(writers[0].images[:8])
    with torch.no_grad():
        raw = network(image)[-1]

    def rounds(of: Sequence[UserSamples], scheme: Scheme, **changes: object) -> list[Personalisation]:
        labels = float(scheme == "supervised")
        settings = replace(PersonalisationSettings(schedule="fast"), weights=loss_weights(scheme, labels), **changes)  # type: ignore[arg-type]
        return [
            personalise(network, user, split_samples(user, SplitSettings(labels=labels), 0), settings) for user in of
        ]

    labelled, distilled = rounds(writers, "supervised"), rounds(writers, "self-distillation")
    frequencies = rounds(skewed, "prior")
    cheaper = rounds(skewed, "prior", drop_reference="original")
    with torch.no_grad():
        moved = float((network(image)[-1] - raw).abs().max())
    drops = [100 * (done.report.accuracy_original - done.report.accuracy_after) for done in (*labelled, *distilled)]
    shifted = [done.shifts is not None for done in (*labelled, *distilled)]
    return [
        Headline(claim="labels: the early exits gain", found=_gain(labelled, slice(0, 3)), least=3),
        Headline(claim="no labels: the first exit gains by distillation", found=_gain(distilled, slice(0, 1)), least=1),
        Headline(
            claim="no labels, few classes: the early exits gain by class frequencies alone",
            found=_gain(frequencies, slice(0, 3)),
            least=5,
        ),
        Headline(
            claim="no labels, few classes: the policy against the original is above it by",
            found=_gain_of_policy(cheaper),
            least=-1,
        ),
        Headline(claim="ordinary writers with frequencies of their own", found=100 * float(np.mean(shifted)), most=10,
                 unit="%"),
        Headline(claim="the deployed policy loses, over writers", found=float(np.mean(drops)), most=1),
        Headline(claim="it costs, of the original's MACs", found=_cost(labelled), least=10, most=90, unit="%"),
        Headline(claim="the paper's schedule takes, of the fast one's CPU time", found=_slower(network, writers[0]),
                 least=2, unit="times"),
        Headline(claim="the raw last exit moves by", found=moved, least=0, most=0, unit="nats"),
    ]  # fmt: skip


def _model(partitions: Partitions, folder: Path) -> tuple[MultiExitNetwork, ModelMetadata]:
    make_global_model(MODEL, partitions, folder)
    network, metadata, _ = calibrate_model(folder, partitions, sources=MODEL.sources, users=30)
    return network.freeze_backbone(), metadata


def _of_few_classes(writers: Sequence[UserSamples], number: int) -> UserSamples:
    images = np.concatenate([np.asarray(one.images) for one in writers])
    labels = np.concatenate([np.asarray(one.labels) for one in writers])
    classes = numpy_generator(number, "classes").choice(int(labels.max()) + 1, CLASSES, replace=False)
    kept = np.isin(labels, classes)
    return replace(writers[0], client_id=f"few-{number}", images=images[kept], labels=labels[kept])


def _gain(rounds: Sequence[Personalisation], exits: slice) -> float:
    """Return by how many points the mean accuracy of some exits rose, over users."""
    accuracy: Callable[[Personalisation, Stage], float] = lambda done, stage: float(  # noqa: E731
        np.mean([row.accuracy for row in done.report.exits_at(stage)[exits]])
    )
    return 100 * float(np.mean([accuracy(done, Stage.AFTER) - accuracy(done, Stage.BEFORE) for done in rounds]))


def _gain_of_policy(rounds: Sequence[Personalisation]) -> float:
    return 100 * float(np.mean([done.report.accuracy_after - done.report.accuracy_original for done in rounds]))


def _cost(rounds: Sequence[Personalisation]) -> float:
    return 100 * float(np.mean([done.report.mean_macs / done.report.original_macs for done in rounds]))


def _slower(network: MultiExitNetwork, user: UserSamples) -> float:
    """Return the ratio of CPU times of a round by the paper's and by the fast schedule."""
    split, seconds = split_samples(user, SplitSettings(), 0), []
    schedules: tuple[Schedule, ...] = ("fast", "fast", "paper")
    for schedule in schedules:
        begin = time.process_time()
        personalise(network, user, split, PersonalisationSettings(schedule=schedule))
        seconds.append(time.process_time() - begin)
    # the first call warms up
    return seconds[2] / seconds[1]


if __name__ == "__main__":
    run_program(main)
