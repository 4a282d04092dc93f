"""What tells an image of another kind from a user's own: the checks that were compared before one was chosen.

    python -m persephonee.experiments.risk.checks --model MODEL --data qmnist --data-path FILE --exit 0

A user personalises with labels, by the fast schedule. Each check gives every image a number, the higher the more
familiar, and has a bound below which 2 % of the users' own images lie that trained nothing, all users together. Prints
a row per check: the fraction of these images on the user with most of them, and the fraction of images of each kind
(`unfamiliar.py`) that is stopped.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from persephonee.clients.personalisation.exit_shifts import with_last_shift
from persephonee.clients.personalisation.familiar_images import image_statistics
from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.clients.personalisation.features import compute_features
from persephonee.clients.personalisation.personalise import Personalisation, personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.settings import Dataset, DataSettings, SplitSettings
from persephonee.data_partitions.user_splits import choose_users, split_samples
from persephonee.experiments.risk.prepared import answers_of
from persephonee.experiments.risk.unfamiliar import KINDS, letters_for, stranger_to, unfamiliar_images
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network

LOST = 0.02
LEAST_IMAGES = 60
OWN = "own"

Floats = NDArray[np.float64]
Scores = dict[str, dict[str, Floats]]
"""Of one user: what each check says of the images of each kind."""


def user_scores(network: MultiExitNetwork, partitions: Partitions, user: str, exit: int) -> Scores:
    """Return the numbers of one user's own images, as `OWN`, and of the other kinds, by check.

    Args:
        network: the global model.
        partitions: that holds the user.
        user: natural id.
        exit: the early exit that would answer; not the last one of them.
    """
    index = partitions.client_ids.index(user)
    samples = partitions.load_partition(index)
    split = split_samples(samples, SplitSettings(labels=1.0), seed=0, names_near_duplicates=False)
    features = compute_features(network, samples.images)
    settings = PersonalisationSettings(schedule="fast", rule="paper")
    done = personalise(network, samples, split, settings, seed=0, features=features)
    trained = compute_features(network, samples.images[split.train])
    distances = {
        name: _distance_to(of(network, done, samples.images[split.train], trained, exit), whole)
        for name, (of, whole) in _DISTANCES.items()
    }
    test = split.test
    kinds = unfamiliar_images(
        samples.images[test], samples.labels[test], stranger_to(partitions, index), letters_for(partitions, index)
    )
    images_of = {OWN: samples.images[split.judged], **{kind: images for kind, (images, _) in kinds.items()}}
    found: Scores = {}
    for kind, images in images_of.items():
        cache = compute_features(network, images)
        scores = _by_logits(network, done, cache, exit)
        for name, (of, _) in _DISTANCES.items():
            scores[name] = distances[name](of(network, done, images, cache, exit))
        for name, values in scores.items():
            found.setdefault(name, {})[kind] = values
    return found


def table_of(users: Sequence[Scores]) -> list[tuple[str, float, dict[str, float]]]:
    """Return a row per check: its name, the fraction of own images stopped on the worst user, and of each kind."""
    rows = []
    for check in users[0]:
        own = [user[check][OWN] for user in users]
        bound = np.quantile(np.concatenate(own), LOST)
        worst = max(float((values < bound).mean()) for values in own)
        stopped = {kind: float(np.mean([(user[check][kind] < bound).mean() for user in users])) for kind in KINDS}
        rows.append((check, worst, stopped))
    return rows


def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    data: Annotated[Literal["qmnist", "writers"], typer.Option(help="Which users.")] = "writers",
    data_path: Annotated[Path | None, typer.Option(help="qmnist: the parquet file.")] = None,
    users: Annotated[int, typer.Option(help="So many development users.")] = 24,
    exit: Annotated[int, typer.Option(help="The exit that would answer.")] = 0,
) -> None:
    """Score, and print the table."""
    torch.set_num_threads(1)
    source: Dataset = "parquet" if data == "qmnist" else "synthetic-writers"
    partitions = open_partitions(DataSettings(dataset=source, data_path=data_path))
    network, metadata = load_network(model)
    sizes = dict(zip(partitions.client_ids, partitions.counts, strict=True))
    large = [user for user in sizes if sizes[user] >= LEAST_IMAGES and user not in metadata.trained_on]
    chosen = choose_users(large, users, seed=7)
    rows = table_of([user_scores(network.freeze_backbone(), partitions, user, exit) for user in chosen])
    typer.echo(f"| check, exit {exit} | worst user | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 2)}")
    for check, worst, stopped in rows:
        typer.echo(f"| {check} | {worst:.0%} | {' | '.join(f'{stopped[kind]:.0%}' for kind in KINDS)} |")


def _by_logits(network: MultiExitNetwork, done: Personalisation, cache: FeatureCache, exit: int) -> dict[str, Floats]:
    everyone = np.arange(len(cache.last_exit_logits))
    logits = with_last_shift(cache, done.last_shift).exit_logits(done.exit_weights, everyone).astype(np.float64)
    confidences, classes = answers_of(logits)
    calibration = network.calibration
    assert calibration is not None
    calibrated = logits[exit] / calibration.temperatures[exit] + np.array(calibration.biases[exit])
    both = np.minimum(confidences[exit], confidences[exit + 1])
    return {
        "confidence": confidences[exit],
        "calibrated confidence": answers_of(calibrated[None])[0][0],
        "energy of the logits": np.logaddexp.reduce(logits[exit], axis=1),
        "the next exit agrees": np.where(classes[exit] == classes[exit + 1], both, 0.0),
    }


def _embeddings(_: MultiExitNetwork, done: Personalisation, __: object, cache: FeatureCache, exit: int) -> Floats:
    return cache.embed(done.exit_weights)[exit][:, :-1].astype(np.float64)


def _map_means(_: MultiExitNetwork, __: Personalisation, ___: object, cache: FeatureCache, exit: int) -> Floats:
    means: Floats = torch.as_tensor(cache.maps[exit]).double().mean(dim=(2, 3)).numpy()
    return means


def _images(_: object, __: object, images: NDArray[np.uint8], ___: object, ____: object) -> Floats:
    return image_statistics(images)


_DISTANCES = {
    "distance of the embedding": (_embeddings, False),
    "distance of the map's channel means": (_map_means, False),
    "distance of the image's statistics": (_images, True),
}
"""What is compared with the user's training images, and whether by its whole covariance or by deviations alone."""


def _distance_to(own: Floats, whole: bool) -> Callable[[Floats], Floats]:
    """Return a function from rows [n, D] to how near they are to those of the user, [n], at most 0."""
    covariance = np.cov(own.T)
    deviations = np.sqrt(np.diag(covariance))
    spread = np.diag(deviations**2 + (0.05 * deviations.mean()) ** 2)
    centre, inverse = own.mean(axis=0), np.linalg.inv(0.9 * covariance + 0.1 * spread if whole else spread)

    def nearness(rows: Floats) -> Floats:
        away = rows - centre
        found: Floats = -np.einsum("ni,ij,nj->n", away, inverse, away)
        return found

    return nearness


if __name__ == "__main__":
    run_program(main)
