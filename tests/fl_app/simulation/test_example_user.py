import pyarrow as pa
import torch

from persephonee.data_partitions.samples import UserSamples
from persephonee.fl_app.simulation.example_user import _example_user, _largest_gain
from persephonee.fl_app.wire import records as wire
from persephonee.server.results.table_schemas import RunTables


def tables(accuracies: dict[tuple[str, int, str], float], statuses: dict[str, str]) -> RunTables:
    exits = [{"round": 1, "client_id": c, "exit": e, "stage": s, "accuracy": a} for (c, e, s), a in accuracies.items()]
    clients = [{"round": 1, "client_id": c, "status": s} for c, s in statuses.items()]
    return RunTables(
        exits=pa.Table.from_pylist(exits),
        clients=pa.Table.from_pylist(clients),
        rounds=pa.Table.from_pylist([{"round": 1}]),
    )


def test_the_example_user_shows_the_user_and_exit_with_the_largest_gain():
    accuracies = {
        ("ada", 0, "before"): 0.5,
        ("ada", 0, "after"): 0.75,
        ("ada", 1, "before"): 0.8,
        ("ada", 1, "after"): 0.8,
        ("bob", 0, "before"): 0.5,
        ("bob", 0, "after"): 0.6,
        ("bob", 1, "before"): 0.1,
        ("bob", 1, "after"): 0.5,
    }
    assert _largest_gain(tables(accuracies, {"ada": wire.OK, "bob": wire.OK}), 2) == ("bob", 1)
    # a user without a result has no images to show
    assert _largest_gain(tables(accuracies, {"ada": wire.OK, "bob": "too small: 8 samples"}), 2) == ("ada", 0)


def test_there_is_no_example_user_where_nobody_gained():
    accuracies = {("ada", 0, "before"): 0.5, ("ada", 0, "after"): 0.5}
    assert _largest_gain(tables(accuracies, {"ada": wire.OK}), 1) is None


def test_mended_images_come_first_and_unchanged_ones_are_not_shown():
    samples = UserSamples(
        client_id="ada",
        images=torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 2, 2).clone(),
        labels=torch.tensor([0, 1, 0, 1]),
    )
    before, after = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 1, 0])
    example_user = _example_user("ada", 1, samples, torch.arange(4), (before, after), ("a", "b"))
    assert (example_user.corrected, example_user.worsened) == (1, 1)
    assert [(e.label, e.before, e.after, int(e.image.max())) for e in example_user.examples] == [
        ("b", "a", "b", 1),
        ("a", "a", "b", 2),
    ]
