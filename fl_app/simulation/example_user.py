"""One user of a simulation shown as an example: the test images whose answer the personal policy changed.

Only `persephonee simulate` can make this picture, since it runs on the machine that owns the data and the simulated
clients' stores; in a federation no sample reaches the server.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.data_partitions.samples import UserSamples, to_float
from persephonee.data_partitions.user_splits import split_samples
from persephonee.fl_app.client_side.client_node import store_of
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.fl_app.wire.records import OK
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata
from persephonee.server.report.example_user_section import Example, ExampleUser
from persephonee.server.results.table_schemas import RunTables

MOST_EXAMPLES = 24


def example_user_of(
    settings: AppSettings, network: MultiExitNetwork, metadata: ModelMetadata, tables: RunTables
) -> ExampleUser | None:
    """Return the user who gains most by the policy, and the images that it mended.

    A user whose policy keeps an early exit: elsewhere nothing differs from the original network.

    Args:
        settings: of the simulation that has ended.
        network: the global model.
        metadata: of the model.
        tables: of the run.

    Returns:
        None where no user gained, or the clients' stores are not on this machine.
    """
    client_id = _largest_gain(tables, network.num_exits)
    if client_id is None:
        return None
    stores = settings.paths.client_store or settings.run_folder(0) / "clients"
    store = ExitStore(store_of(stores, client_id))
    stored = store.load(network.backbone_fingerprint, network.exit_state(), client_id)
    if stored is None:
        return None
    partitions = open_fitting(settings.data, network, metadata, settings.sources)
    samples = partitions.load_partition(partitions.client_ids.index(client_id))
    test = split_samples(samples, settings.split, settings.seed, stored.parts).test
    network.load_exit_state(stored.exit_weights)
    answers = _answers(network, samples, test, stored.policy, stored.last_shift)
    names = partitions.class_names or tuple(str(k) for k in range(partitions.num_classes))
    return _example_user(client_id, samples, test, answers, names)


def _largest_gain(tables: RunTables, num_exits: int) -> str | None:
    last = max((row["round"] for row in tables.rounds.to_pylist()), default=0)
    keeping = {
        row["client_id"]
        for row in tables.exits.to_pylist()
        if row["round"] == last and row["stage"] == "after" and row["kept"] and row["exit"] < num_exits
    }
    gains = [
        (row["accuracy_after"] - row["accuracy_original"], row["client_id"])
        for row in tables.clients_of(last)
        if row["status"] == OK and row["client_id"] in keeping
    ]
    gain, client = max(gains, key=lambda g: (g[0], g[1]), default=(0.0, ""))
    return client if gain > 0 else None


@torch.no_grad()
def _answers(
    network: MultiExitNetwork,
    samples: UserSamples,
    test: NDArray[np.int64],
    policy: ExitPolicy,
    last_shift: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what the original network and the policy answer to the test images, shape [n] each."""
    logits = torch.stack(network.eval()(to_float(samples.images[test]))).numpy()
    original: NDArray[np.int64] = logits[-1].argmax(axis=1)
    if last_shift is not None:
        logits[-1] += last_shift
    outputs = ExitOutputs.of(logits)
    if policy.familiar is not None:
        outputs = outputs.with_unfamiliar(policy.familiar.unfamiliar(samples.images[test]))
    leaves = policy.exit_of(outputs.confidences)
    return original, outputs.predictions[leaves, np.arange(len(leaves))]


def _example_user(
    client_id: str,
    samples: UserSamples,
    test: NDArray[np.int64],
    predictions: tuple[NDArray[np.int64], NDArray[np.int64]],
    names: tuple[str, ...],
) -> ExampleUser:
    before, after = predictions
    truth = samples.labels[test]
    corrected = (before != truth) & (after == truth)
    worsened = (before == truth) & (after != truth)
    shown = [*np.flatnonzero(corrected).tolist(), *np.flatnonzero(worsened).tolist()][:MOST_EXAMPLES]
    examples = tuple(
        Example(
            image=samples.images[test[i]],
            label=names[int(truth[i])],
            before=names[int(before[i])],
            after=names[int(after[i])],
        )
        for i in shown
    )
    return ExampleUser(
        client_id=client_id, examples=examples, corrected=int(corrected.sum()), worsened=int(worsened.sum())
    )
