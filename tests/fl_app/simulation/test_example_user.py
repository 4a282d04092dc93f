import numpy as np
import pyarrow as pa
import torch

from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.data_partitions.samples import UserSamples
from persephonee.fl_app.simulation.example_user import _answers, _example_user, _largest_gain
from persephonee.fl_app.wire import records as wire
from persephonee.server.results.table_schemas import RunTables


def tables(*users: tuple[str, str, float, float, bool]) -> RunTables:
    """Return a round's tables of users: id, status, accuracy of the original and of the policy, and an exit kept."""
    exits = [
        {"round": 1, "client_id": user, "exit": exit, "stage": "after", "kept": exit == 1 or keeps}
        for user, _, _, _, keeps in users
        for exit in range(2)
    ]
    clients = [
        {"round": 1, "client_id": user, "status": status, "accuracy_original": original, "accuracy_after": after}
        for user, status, original, after, _ in users
    ]
    return RunTables(
        exits=pa.Table.from_pylist(exits),
        clients=pa.Table.from_pylist(clients),
        rounds=pa.Table.from_pylist([{"round": 1}]),
    )


def test_the_example_user_is_who_gains_most_by_the_policy_and_keeps_an_exit():
    ada, bob = ("ada", wire.OK, 0.5, 0.6, True), ("bob", wire.OK, 0.5, 0.8, True)
    assert _largest_gain(tables(ada, bob), 1) == "bob"
    # a policy without an exit is the original network, and a user without a result has no images to show
    assert _largest_gain(tables(ada, (*bob[:4], False)), 1) == "ada"
    assert _largest_gain(tables(ada, ("bob", "too small: 8 samples", *bob[2:])), 1) == "ada"


def test_there_is_no_example_user_where_nobody_gained():
    assert _largest_gain(tables(("ada", wire.OK, 0.5, 0.5, True)), 1) is None


def test_answers_are_those_of_the_original_network_and_of_the_policy():
    class Network(torch.nn.Module):
        def forward(self, images):
            sure, unsure = torch.tensor([9.0, 0.0]), torch.tensor([0.1, 0.0])
            return [torch.stack([sure, unsure]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])]

    samples = UserSamples(
        client_id="ada", images=torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels=torch.zeros(2).long()
    )
    policy = ExitPolicy(threshold=0.9, exits_in_use=(0,), num_exits=1)
    original, after = _answers(Network(), samples, np.arange(2), policy, None)
    assert (original.tolist(), after.tolist()) == ([1, 1], [0, 1])
    # the user's class frequencies belong to the policy, not to the original network
    original, after = _answers(Network(), samples, np.arange(2), policy, np.array([5.0, 0.0], dtype=np.float32))
    assert (original.tolist(), after.tolist()) == ([1, 1], [0, 0])


def test_mended_images_come_first_and_unchanged_ones_are_not_shown():
    samples = UserSamples(
        client_id="ada",
        images=torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 2, 2).clone(),
        labels=torch.tensor([0, 1, 0, 1]),
    )
    before, after = np.array([0, 0, 0, 0]), np.array([0, 1, 1, 0])
    example_user = _example_user("ada", samples, np.arange(4), (before, after), ("a", "b"))
    assert (example_user.corrected, example_user.worsened) == (1, 1)
    assert [(e.label, e.before, e.after, int(e.image.max())) for e in example_user.examples] == [
        ("b", "a", "b", 1),
        ("a", "a", "b", 2),
    ]
