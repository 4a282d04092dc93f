"""One user of a simulation shown as an example: the test images whose answer personalisation changed.

Only `persephonee simulate` can make this picture, since it runs on the machine that owns the data and the simulated
clients' stores; in a federation no sample reaches the server.
"""

from collections.abc import Mapping
from typing import Any

import torch

from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.features import compute_features
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import split_samples
from persephonee.fl_app.client_side.client_node import store_of
from persephonee.fl_app.server_side.checkpoint import Checkpoint
from persephonee.fl_app.server_side.exit_sharing import ExitSharing
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
    """Return the user and the early exit with the largest gain in accuracy, and the images that changed there.

    Args:
        settings: of the simulation that has ended.
        network: the global model.
        metadata: of the model.
        tables: of the run.

    Returns:
        None where no user gained, or the clients' stores are not on this machine.
    """
    found = _largest_gain(tables, network.num_exits)
    if found is None:
        return None
    client_id, exit = found
    stores = settings.paths.client_store or settings.run_folder(0) / "clients"
    stored = ExitStore(store_of(stores, client_id)).load(network.backbone_fingerprint, client_id)
    if stored is None:
        return None
    partitions = open_fitting(settings.data, network, metadata)
    samples = partitions.load_partition(partitions.client_ids.index(client_id))
    test = split_samples(samples, settings.split, settings.seed, stored.parts).test
    network.load_exit_state(global_exits_of(settings, network, max(tables.round_numbers)))
    before = _answers(network, samples, test, exit)
    network.load_exit_state(stored.exit_weights)
    after = _answers(network, samples, test, exit)
    names = partitions.class_names or tuple(str(k) for k in range(partitions.num_classes))
    return _example_user(client_id, exit, samples, test, (before, after), names)


def global_exits_of(settings: AppSettings, network: MultiExitNetwork, number: int) -> dict[str, torch.Tensor]:
    """Return the global exits that a round began with: the model's own, or what the rounds before had merged."""
    if not settings.sharing.share_exits or number == 1:
        return network.exit_state()
    checkpoint = Checkpoint.read(settings.run_folder(0), number - 1)
    sharing = ExitSharing(network, settings.sharing, settings.privacy, checkpoint.secret)
    sharing.load_state(checkpoint.arrays, checkpoint.info)
    return sharing.exit_state()


def _largest_gain(tables: RunTables, num_exits: int) -> tuple[str, int] | None:
    last = max((row["round"] for row in tables.rounds.to_pylist()), default=0)
    ok = {c["client_id"] for c in tables.clients_of(last) if c["status"] == OK}
    rows = [r for r in tables.exits.to_pylist() if r["round"] == last and r["client_id"] in ok]
    accuracy: Mapping[Any, float] = {(r["client_id"], r["exit"], r["stage"]): r["accuracy"] for r in rows}
    gains = [
        (accuracy[client, exit, "after"] - accuracy[client, exit, "before"], client, exit)
        for client in sorted(ok)
        for exit in range(num_exits)
    ]
    gain, client, exit = max(gains, key=lambda g: (g[0], -g[2]), default=(0.0, "", 0))
    return (client, exit) if gain > 0 else None


@torch.no_grad()
def _answers(network: MultiExitNetwork, samples: UserSamples, test: torch.Tensor, exit: int) -> torch.Tensor:
    maps = compute_features(network, samples.images[test]).maps[exit][torch.arange(len(test))]
    predictions: torch.Tensor = network.heads[exit](maps).argmax(dim=1)
    return predictions


def _example_user(
    client_id: str,
    exit: int,
    samples: UserSamples,
    test: torch.Tensor,
    predictions: tuple[torch.Tensor, torch.Tensor],
    names: tuple[str, ...],
) -> ExampleUser:
    before, after = predictions
    truth = samples.labels[test]
    corrected = (before != truth) & (after == truth)
    worsened = (before == truth) & (after != truth)
    shown = [*corrected.nonzero()[:, 0].tolist(), *worsened.nonzero()[:, 0].tolist()][:MOST_EXAMPLES]
    examples = tuple(
        Example(
            image=samples.images[test[i]].numpy(),
            label=names[int(truth[i])],
            before=names[int(before[i])],
            after=names[int(after[i])],
        )
        for i in shown
    )
    return ExampleUser(
        client_id=client_id, exit=exit, examples=examples, corrected=int(corrected.sum()), worsened=int(worsened.sum())
    )
