"""How much of a user's own images the check for unfamiliar ones stops, and how much of other kinds: no network needed.

    python -m persephonee.experiments.risk.fractions --qmnist FILE --tiny-imagenet FOLDER

The training and calibration images say what is familiar, and the test images and those of other kinds are judged. A row
is a data set, a group of users and a setting `unfamiliar_fraction`: which fraction of the test images is stopped, as a
mean over users and on the user with most of them, and which fraction of the images of each kind (`unfamiliar.py`). The
development users chose the setting, and the others chose nothing.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from persephonee.clients.personalisation.familiar_images import FamiliarImages, image_statistics
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import choose_users, split_samples
from persephonee.experiments.risk.unfamiliar import KINDS, letters_for, stranger_to, unfamiliar_images

FRACTIONS = (0.005, 0.02, 0.05)
LEAST_IMAGES = 60
OWN = "own"

Statistics = dict[str, NDArray[np.float64]]


def user_statistics(partitions: Partitions, user: str) -> tuple[NDArray[np.float64], Statistics]:
    """Return the statistics of the images that say what is familiar, and of those that are judged, by kind."""
    index = partitions.client_ids.index(user)
    samples = partitions.load_partition(index)
    split = split_samples(samples, SplitSettings(), seed=0, names_near_duplicates=False)
    own = np.concatenate([split.train, split.calibration])
    test = samples.images[split.test]
    others = unfamiliar_images(
        test, samples.labels[split.test], stranger_to(partitions, index), letters_for(partitions, index)
    )
    judged = {OWN: test, **{kind: images for kind, (images, _) in others.items()}}
    return image_statistics(samples.images[own]), {kind: image_statistics(images) for kind, images in judged.items()}


def stopped(users: Sequence[tuple[NDArray[np.float64], Statistics]], fraction: float) -> tuple[dict[str, float], float]:
    """Return which fraction of each kind is unfamiliar, as a mean over users, and of the worst user's own images."""
    found: dict[str, list[float]] = {kind: [] for kind in (OWN, *KINDS)}
    for own, judged in users:
        familiar = FamiliarImages.of(own, fraction)
        for kind, statistics in judged.items():
            found[kind].append(float(familiar.unfamiliar_statistics(statistics).mean()))
    return {kind: float(np.mean(values)) for kind, values in found.items()}, max(found[OWN])


def main(
    *,
    qmnist: Annotated[Path | None, typer.Option(help="The parquet file.")] = None,
    tiny_imagenet: Annotated[Path | None, typer.Option(help="The folder of parquet files.")] = None,
    users: Annotated[int, typer.Option(help="In each group.")] = 40,
) -> None:
    """Measure, and print the table."""
    typer.echo(
        f"| data, users | setting | own images | worst user | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 4)}"
    )
    for name, partitions in _sources(qmnist, tiny_imagenet):
        sizes = dict(zip(partitions.client_ids, partitions.counts, strict=True))
        large = [user for user in sizes if sizes[user] >= LEAST_IMAGES]
        development = choose_users(large, users, seed=7)
        others = choose_users(large, users, 0, development)
        for group, chosen in (("development", development), ("others", others)):
            measured = [user_statistics(partitions, user) for user in chosen]
            for fraction in FRACTIONS:
                means, worst = stopped(measured, fraction)
                kinds = " | ".join(f"{means[kind]:.0%}" for kind in KINDS)
                typer.echo(f"| {name}, {group} | {fraction:g} | {means[OWN]:.1%} | {worst:.0%} | {kinds} |")


def _sources(qmnist: Path | None, tiny_imagenet: Path | None) -> Iterator[tuple[str, Partitions]]:
    if qmnist is not None:
        yield "QMNIST", open_partitions(DataSettings(dataset="parquet", data_path=qmnist))
    yield "built-in writers", open_partitions(DataSettings())
    if tiny_imagenet is not None:
        photographs = DataSettings(
            dataset="imagefolder", data_path=tiny_imagenet, samples_per_user=400, label_skew_width=5.0, image_size=96
        )
        yield "Tiny ImageNet, 96 px", open_partitions(photographs)


if __name__ == "__main__":
    run_program(main)
