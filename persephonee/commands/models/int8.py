"""`persephonee export --int8`: quantise a model's graphs on held-out users, and show what that costs and gains."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.table import Table

    from persephonee.data_partitions.samples import Partitions
    from persephonee.multi_exit.graphs.network import GraphNetwork

CALIBRATION_IMAGES = 256
"""From which the scales are made, drawn from all of the calibrating users' images."""
_REPETITIONS = 60
"""Of one image through one stage, on both kinds of graphs in turn."""


def quantise_and_show(model: Path, partitions: "Partitions", users: int, seed: int) -> None:
    """Write a model's int8 graphs beside the others, and print accuracy and time of both.

    Args:
        model: its folder.
        partitions: data whose users are no devices.
        users: at most so many who trained nothing: half of them give the scales, and the other half is measured.
        seed: decides which.

    Raises:
        AppError: fewer than two users are left whom the model was not trained on.
    """
    from rich.console import Console

    from persephonee.data_partitions.seeds import numpy_generator
    from persephonee.data_partitions.user_splits import choose_users
    from persephonee.fl_app.errors import AppError
    from persephonee.multi_exit.graphs.network import load_graph_network
    from persephonee.multi_exit.graphs.quantising import write_int8_graphs

    _, metadata = load_graph_network(model)
    left = [name for name in partitions.client_ids if name not in set(metadata.trained_on)]
    if len(left) < 2:
        raise AppError(
            f"{len(left)} users are left on whom the model was not trained, expected 2 or more: give other data."
        )
    chosen = choose_users(left, min(users, len(left)), seed)
    images, _ = _samples(partitions, chosen[::2])
    drawn = numpy_generator(seed, "int8").permutation(len(images))[:CALIBRATION_IMAGES]
    write_int8_graphs(model, images[np.sort(drawn)])
    networks = [load_graph_network(model, threads=1, kind=kind)[0] for kind in ("float32", "int8")]
    console = Console()
    console.print(_table(networks, *_samples(partitions, chosen[1::2])))
    sizes = [sum((model / stage.file).stat().st_size for stage in network.graphs.stages) / 1e6 for network in networks]
    console.print(
        f"{model}: graphs of {sizes[0]:.2f} MB in float32 and {sizes[1]:.2f} MB in int8, with scales from {len(drawn)} "
        f"images of {len(chosen[::2])} users; devices take these with --graphs int8.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _samples(partitions: "Partitions", users: "tuple[str, ...]") -> "tuple[NDArray[np.uint8], NDArray[np.int64]]":
    found = [partitions.load_partition(partitions.client_ids.index(user)) for user in users]
    return np.concatenate([one.images for one in found]), np.concatenate([one.labels for one in found])


def _table(networks: "list[GraphNetwork]", images: "NDArray[np.uint8]", labels: "NDArray[np.int64]") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=f"{len(images)} images of other held-out users", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("exit", "accuracy\nfloat32", "accuracy\nint8", "ms\nfloat32", "ms\nint8"):
        table.add_column(name, justify="right", no_wrap=True)
    # these runs warm up what is timed next
    accuracies = [_accuracies(network, images, labels) for network in networks]
    times = np.cumsum(_stage_ms(networks, images[:1]), axis=1)
    for exit in range(networks[0].num_exits + 1):
        name = "last" if exit == networks[0].num_exits else str(exit)
        rows = (*(f"{of[exit]:.2%}" for of in accuracies), *(f"{of[exit]:.3f}" for of in times))
        table.add_row(name, *rows)
    return table


def _accuracies(network: "GraphNetwork", images: "NDArray[np.uint8]", labels: "NDArray[np.int64]") -> list[float]:
    from persephonee.multi_exit.exit_weights import classifiers_of

    embedded = network.embed(images)
    classifiers = classifiers_of(network.exit_state())
    logits = [rows @ one[:, :-1].T + one[:, -1] for rows, one in zip(embedded.exits, classifiers, strict=True)]
    return [float((one.argmax(axis=1) == labels).mean()) for one in (*logits, embedded.last_logits)]


def _stage_ms(networks: "list[GraphNetwork]", images: "NDArray[np.uint8]") -> "NDArray[np.float64]":
    """Return the processor time of each stage with its exit, in ms, shape [networks, stages], the median of many."""
    taken = np.empty((len(networks), networks[0].num_exits + 1, _REPETITIONS))
    for repetition in range(_REPETITIONS):
        for number, network in enumerate(networks):
            features = images.astype(np.float32) / np.float32(255)
            for stage in range(network.num_exits + 1):
                # of this thread, which computes alone: what else the machine does counts little
                begin = time.thread_time()
                if stage < network.num_exits:
                    features, _ = network.run_stage(stage, features)
                else:
                    network.run_last(features)
                taken[number, stage, repetition] = time.thread_time() - begin
    found: NDArray[np.float64] = np.median(taken, axis=2) * 1e3
    return found
