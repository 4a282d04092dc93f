"""Whole runs in one process: ServerApp, strategy, wire and ClientApp, without Ray."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest
from flwr.app import ArrayRecord, ConfigRecord

from persephonee.fl_app.client_side import client_app
from persephonee.fl_app.errors import AppError, RunFailedError
from persephonee.fl_app.server_side.run_status import read_status
from persephonee.fl_app.wire import model_store
from persephonee.fl_app.wire import records as wire
from persephonee.multi_exit.storage import load_network
from persephonee.server.errors import ServerError
from tests.fl_app.whole_runs import changed, run, table, with_status

pytestmark = pytest.mark.usefixtures("draw_nothing")


@pytest.mark.draws_report
def test_a_run_leaves_its_tables_and_a_report(settings, simulated_nodes, make_grid):
    run_dir = run(make_grid(simulated_nodes(3), settings), settings)
    clients, exits = table(run_dir, "clients"), table(run_dir, "exits")
    assert list(clients.status) == ["ok"] * 3
    assert len(exits) == 3 * 2 * 3  # clients, stages, two early exits and the last one
    assert set(clients.client_id) < {f"u{i}" for i in range(7)}
    assert (run_dir / "report.html").exists()
    status = read_status(run_dir)
    assert (status.state, status.round, status.rounds) == ("finished", 1, 1)
    assert status.done == status.asked > 0
    config = json.loads((run_dir / "config.json").read_text())
    assert config["model"] == load_network(settings.paths.model, settings.sources)[0].fingerprint
    assert str(run_dir.parent) not in (run_dir / "config.json").read_text().replace(config["data-path"], "")


def test_the_same_seed_gives_the_same_tables_whatever_the_node_ids_are(settings, simulated_nodes, make_grid, tmp_path):
    times = {"clients": ["seconds_personalise"], "exits": []}
    settings = changed(settings, rounds=2)
    runs = []
    for name, ids in (("a", [7, 8, 9]), ("b", [30, 10, 20])):
        here = changed(settings, run_dir=str(tmp_path / name))
        runs.append(run(make_grid(simulated_nodes(3, ids), here), here))
    for name, columns in times.items():
        pd.testing.assert_frame_equal(table(runs[0], name, columns), table(runs[1], name, columns), check_exact=True)
    other = changed(settings, run_dir=str(tmp_path / "c"), seed=1)
    third = run(make_grid(simulated_nodes(3), other), other)
    assert not table(runs[0], "exits").equals(table(third, "exits"))


def test_a_client_without_the_model_gets_it_once(settings, device_node, make_grid, tmp_path):
    settings = changed(settings, rounds=2)
    nodes = [device_node("u0", 1), device_node("u1", 2)]
    run_dir = run(make_grid(nodes, settings), settings)
    for node in nodes:
        assert ["model" in message.content for message in node.received] == [False, True, False]
    clients = table(run_dir, "clients")
    assert clients[clients["round"] == 1].bytes_down.min() > 5_000
    assert clients[clients["round"] == 2].bytes_down.max() <= 2_048
    assert clients.bytes_up.max() <= 4_096
    fingerprint = load_network(settings.paths.model, settings.sources)[0].fingerprint
    received, metadata = load_network(tmp_path / "device-1" / "models" / fingerprint, settings.sources)
    assert received.fingerprint == fingerprint
    assert metadata.trained_on == ()


def test_a_client_that_lost_the_model_is_sent_it_in_the_same_round(settings, device_node, make_grid, monkeypatch):
    node = device_node("u0", 1)
    grid = make_grid([node], settings)
    honest = wire.make_status
    monkeypatch.setattr(wire, "make_status", lambda **values: honest(**{**values, "model_held": True}))
    assert list(with_status(run(grid, settings))) == ["ok"]
    assert ["model" in message.content for message in node.received] == [False, False, True]


def test_metrics_only_rounds_stay_within_4_kb_up_and_2_kb_down(settings, simulated_nodes, make_grid):
    from flwr.common.serde import message_to_proto

    nodes = simulated_nodes(3)
    run_dir = run(make_grid(nodes, settings), settings)
    clients = table(run_dir, "clients")
    assert clients.bytes_up.between(1, 4_096).all()
    assert clients.bytes_down.between(1, 2_048).all()
    for node in nodes:
        asked = [len(message_to_proto(message).SerializeToString()) for message in node.received]
        content = [wire.content_bytes(message.content) for message in node.received]
        assert sum(content) in set(clients.bytes_down)
        # the envelope: ids, times, type
        assert max(a - c for a, c in zip(asked, content, strict=True)) < 200


def test_no_array_travels_in_a_metrics_only_round(settings, simulated_nodes, make_grid):
    nodes = simulated_nodes(2)
    run(make_grid(nodes, settings), settings)
    contents = [c for node in nodes for c in (*node.sent, *(message.content for message in node.received))]
    assert len(contents) == 4
    assert not any(content.array_records for content in contents)


def test_simulated_nodes_are_not_asked_who_they_are_before_they_train(settings, simulated_nodes, make_grid):
    nodes = simulated_nodes(3)
    run(make_grid(nodes, settings), settings)
    assert [[message.metadata.message_type for message in node.received] for node in nodes] == [["train"]] * 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("a letter that u7 wrote in private"), "KeyError, see the client's own log"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/ada"),
            "the device cannot read or write its files (No space left on device)",
        ),
    ],
)
def test_a_client_that_fails_is_named_and_the_others_go_on(
    settings, simulated_nodes, make_grid, monkeypatch, error, words
):
    def broken(*arguments, **more):
        raise error

    nodes = simulated_nodes(3)
    good = client_app.personalise
    monkeypatch.setattr(
        client_app, "personalise", lambda n, s, *a, **m: (broken if s.client_id == "u1" else good)(n, s, *a, **m)
    )
    settings = changed(settings, clients=3, seed=seed_with(settings, "u1", 3))
    run_dir = run(make_grid(nodes, settings), settings)
    status = with_status(run_dir)
    assert status["u1"] == f"failed: {words}"
    assert sorted(status)[-2:] == ["ok", "ok"]
    rounds = table(run_dir, "rounds")
    assert (rounds.replies[0], rounds.failures[0]) == (2, 1)


def seed_with(settings, user, count):
    from persephonee.data_partitions.opening import open_partitions
    from persephonee.data_partitions.user_splits import choose_users

    ids = open_partitions(settings.data).client_ids
    return next(seed for seed in range(100) if user in choose_users(ids, count, seed))


def test_a_user_that_is_too_small_is_counted_and_named(settings, simulated_nodes, make_grid):
    run_dir = run(make_grid(simulated_nodes(7), settings), settings)
    status = with_status(run_dir)
    assert status["u6"] == "too small: User u6 has 5 samples; at least 20 are needed."
    assert table(run_dir, "rounds").replies[0] == 7


def test_a_loss_that_is_not_finite_refuses_the_round_and_keeps_the_old_exits(settings, simulated_nodes, make_grid):
    run(make_grid(simulated_nodes(2), settings), settings)
    store = settings.paths.run_dir / "clients"
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert before
    wild = changed(settings, learning_rate=3e38, client_store=str(store), run_dir=str(store.parent.parent / "wild"))
    with pytest.raises(RunFailedError, match=r"most frequent cause: refused: .*became (nan|inf)"):
        run(make_grid(simulated_nodes(2), wild), wild)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_a_run_without_a_valid_reply_fails_and_says_why(settings, simulated_nodes, make_grid, monkeypatch):
    monkeypatch.setattr(client_app, "code_fingerprint", lambda: "0" * 64)
    with pytest.raises(RunFailedError) as caught:
        run(make_grid(simulated_nodes(2), settings), settings)
    assert "0 of 2 clients personalised" in str(caught.value)
    assert "the server runs other code" in str(caught.value)
    status = read_status(settings.paths.run_dir)
    assert (status.state, status.doing) == ("failed", str(caught.value))
    assert all("install the same" in reason for reason in with_status(settings.paths.run_dir))


def test_too_few_valid_replies_fail_the_run(settings, simulated_nodes, make_grid):
    nodes = simulated_nodes(3)
    for node in nodes[:2]:
        node.reply_with = lambda message, content: None
    late = changed(settings, round_deadline=0.3)
    with pytest.raises(RunFailedError, match=r"1 of 3 .*min-reply-fraction is 0.5.*no reply within 0.3 s"):
        run(make_grid(nodes, late), late)
    enough = changed(late, min_reply_fraction=0.3, run_dir=str(settings.paths.run_dir) + "2")
    nodes = simulated_nodes(3)
    for node in nodes[:2]:
        node.reply_with = lambda message, content: None
    assert sorted(with_status(run(make_grid(nodes, enough), enough)))[-1] == "ok"


def test_clients_that_refuse_at_once_are_not_those_who_were_enough(settings, simulated_nodes, make_grid):
    def refuses(message, reply):
        return wire.refusal(reply["report"]["client-id"], "refused: the server runs other code")

    def at_the_second_look():
        looks = iter([False, True])
        return lambda message, reply: reply if next(looks) else None

    nodes = simulated_nodes(5)
    for node, reply_with in zip(
        nodes,
        [refuses, refuses, at_the_second_look(), at_the_second_look(), lambda message, reply: None],
        strict=True,
    ):
        node.reply_with = reply_with
    half = changed(settings, enough_fraction=0.4, min_reply_fraction=0.4)
    status = sorted(with_status(run(make_grid(nodes, half), half)))
    late, refused = "failed: no reply before 2 others, which were enough", "refused: the server runs other code"
    assert status == [late, "ok", "ok", refused, refused]


@pytest.mark.parametrize("leak", ["weights", "another client", "another round"])
def test_the_server_refuses_and_counts_what_a_client_may_not_send(settings, simulated_nodes, make_grid, leak):
    def tamper(message, reply):
        if leak == "weights":
            reply["exits"] = ArrayRecord([np.zeros(3, dtype=np.float32)])
        elif leak == "another client":
            reply["report"]["client-id"] = "u5"
        else:
            reply["metrics"]["round"] = 7
        return reply

    nodes = simulated_nodes(2)
    nodes[0].reply_with = tamper
    settings = changed(settings, seed=seed_without(settings, "u5", 2))
    run_dir = run(make_grid(nodes, settings), settings)
    refused = [status for status in with_status(run_dir) if status.startswith("refused: ")]
    assert len(refused) == 1
    assert table(run_dir, "rounds").failures[0] == 1
    assert table(run_dir, "exits").client_id.nunique() == 1


def seed_without(settings, user, count):
    from persephonee.data_partitions.opening import open_partitions
    from persephonee.data_partitions.user_splits import choose_users

    ids = open_partitions(settings.data).client_ids
    return next(seed for seed in range(100) if user not in choose_users(ids, count, seed))


def test_two_nodes_that_say_they_are_one_client_are_both_left_out(settings, device_node, make_grid):
    nodes = [device_node("u0", 1), device_node("u1", 2), device_node("u1", 3)]
    status = with_status(run(make_grid(nodes, settings), settings))
    assert status["u0"] == "ok"
    assert status["u1"] == "refused: 2 nodes say that they are this client"


def test_a_node_that_does_not_say_who_it_is_counts_as_a_failure(settings, device_node, make_grid):
    nodes = [device_node("u0", 1), device_node("u1", 2, typo="x")]
    run_dir = run(make_grid(nodes, settings), settings)
    rounds = table(run_dir, "rounds")
    assert (rounds.replies[0], rounds.failures[0]) == (1, 1)


def test_no_node_at_all_fails_the_run_in_time(settings, make_grid):
    with pytest.raises(RunFailedError, match=r"No node came within 0.5 s"):
        run(make_grid([], settings), settings)


def test_more_clients_than_users_and_other_data_are_refused(settings, simulated_nodes, make_grid, data):
    many = changed(settings, clients=8)
    with pytest.raises(ValueError, match="8 users were asked for and there are 7"):
        run(make_grid(simulated_nodes(8), many), many)
    other = changed(settings, num_classes=5, run_dir=str(settings.paths.run_dir) + "2")
    with pytest.raises(AppError, match="The model knows 3 classes"):
        run(make_grid(simulated_nodes(2), other), other)


def test_a_run_goes_on_after_its_last_round_and_never_over_another_run(settings, simulated_nodes, make_grid):
    run(make_grid(simulated_nodes(2), settings), settings)
    with pytest.raises(ServerError, match="holds a run already"):
        run(make_grid(simulated_nodes(2), settings), settings)
    first = table(settings.paths.run_dir, "exits")
    more = changed(settings, rounds=2, resume=True)
    run(make_grid(simulated_nodes(2), more), more)
    exits = table(settings.paths.run_dir, "exits")
    assert list(exits["round"].unique()) == [1, 2]
    pd.testing.assert_frame_equal(exits[exits["round"] == 1].reset_index(drop=True), first)


def test_the_model_in_memory_is_the_same_after_many_clients(settings, simulated_nodes, make_grid):
    run(make_grid(simulated_nodes(4), settings), settings)
    (fingerprint,) = model_store._IN_MEMORY
    assert model_store._IN_MEMORY[fingerprint][0].fingerprint == fingerprint


def test_a_reply_that_may_not_leave_is_held_back_on_the_client(settings, simulated_nodes, make_grid, monkeypatch):
    honest = wire.to_reply

    def leaky(report):
        reply = honest(report)
        reply["secret"] = ConfigRecord({"image": b"\x00" * 256})
        return reply

    monkeypatch.setattr(wire, "to_reply", leaky)
    nodes = simulated_nodes(2)
    with pytest.raises(RunFailedError, match="the reply held something that may not travel"):
        run(make_grid(nodes, settings), settings)
    assert all("secret" not in content for node in nodes for content in node.sent)
