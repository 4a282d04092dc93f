import contextlib
import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from persephonee.server.errors import ServerError
from persephonee.server.results.run_folder import RunFolder
from persephonee.server.results.table_schemas import (
    CLIENTS_SCHEMA,
    EXITS_SCHEMA,
    ROUNDS_SCHEMA,
    make_table,
    read_table,
    write_table,
)

CONFIG = {
    "versions": {"persephonee": "0.1"},
    "dataset": "synthetic-writers",
    "seed": 1,
    "rounds": 1,
    "drop_tolerance": 0.01,
}
TABLES = ("exits.parquet", "clients.parquet", "rounds.parquet")


def exit_row(round_number=1, client="a", number=0, stage="before", **more):
    row = {"round": round_number, "client_id": client, "exit": number, "stage": stage, "accuracy": 0.5, "loss": 1.0}
    return {**row, "exit_rate": 0.5, "kept": True, "macs": 100, "num_test": 10, **more}


def client_row(round_number=1, client="a", **more):
    row = {"round": round_number, "client_id": client, "status": "ok", "num_train": 30, "labels": "all"}
    return {**row, "accuracy_original": 0.9, "accuracy_before": 0.8, "accuracy_after": 0.9, "mean_macs": 50.0, **more}


def round_of(number=1, clients=("a", "b")):
    exits = [exit_row(number, client, e, stage) for client in clients for e in (0, 1) for stage in ("before", "after")]
    return {
        "exits": exits,
        "clients": [client_row(number, client) for client in clients],
        "round_row": {"round": number, "replies": len(clients), "failures": 0},
    }


def digests(path):
    return [hashlib.sha256((path / name).read_bytes()).hexdigest() for name in TABLES]


def test_columns_stand_in_the_order_of_the_design_with_fixed_types(tmp_path):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    run.append_round(**round_of())
    assert pq.read_schema(run.path / "exits.parquet").equals(EXITS_SCHEMA)
    assert pq.read_schema(run.path / "clients.parquet").equals(CLIENTS_SCHEMA)
    assert pq.read_schema(run.path / "rounds.parquet").equals(ROUNDS_SCHEMA)
    assert ", ".join(EXITS_SCHEMA.names) == (
        "round, client_id, exit, stage, accuracy, loss, exit_rate, kept, macs, num_test"
    )
    assert ", ".join(CLIENTS_SCHEMA.names) == (
        "round, client_id, status, num_train, num_calibration, num_test, labels, rule, threshold, accuracy_original, "
        "accuracy_before, accuracy_after, mean_macs, original_macs, bytes_up, bytes_down, seconds_personalise, "
        "rolled_back_exits, mean_macs_before"
    )
    assert ROUNDS_SCHEMA.names[:3] == ["round", "replies", "failures"]


def test_equal_rows_in_another_order_give_the_same_bytes(tmp_path):
    first, second = RunFolder.create(tmp_path / "1", CONFIG), RunFolder.create(tmp_path / "2", CONFIG)
    one = round_of()
    first.append_round(**one)
    second.append_round(exits=one["exits"][::-1], clients=one["clients"][::-1], round_row=one["round_row"])
    assert digests(first.path) == digests(second.path)


def test_rows_are_sorted_by_round_client_exit_and_before_first(tmp_path):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    rows = round_of(clients=("b", "a"))
    rows["exits"].reverse()
    run.append_round(**rows)
    run.append_round(**round_of(2))
    table = run.tables().exits.to_pylist()
    keys = [(row["round"], row["client_id"], row["exit"], row["stage"]) for row in table]
    expected = [(r, c, e, s) for r in (1, 2) for c in "ab" for e in (0, 1) for s in ("before", "after")]
    assert keys == expected


def test_nan_and_what_a_failed_client_lacks_become_null(tmp_path):
    table = make_table(
        "clients",
        [
            {"round": 1, "client_id": "small", "status": "too small: 8 samples"},
            client_row(threshold=float("nan"), rolled_back_exits=(1, 3), num_test=np.int64(7), mean_macs=np.float32(2)),
        ],
    )
    valid, small = table.to_pylist()
    assert valid["threshold"] is None and valid["rolled_back_exits"] == [1, 3]
    assert (valid["num_test"], valid["mean_macs"]) == (7, 2.0)
    assert all(small[name] is None for name in CLIENTS_SCHEMA.names if name not in ("round", "client_id", "status"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (exit_row(acuracy=0.1), "no column 'acuracy'"),
        (exit_row(client=None), "lacks its 'client_id'"),
        (exit_row(stage="during"), "neither 'before' nor 'after'"),
        (exit_row(macs="many"), "another type"),
        (exit_row(round_number="one"), "another type"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_in_one_sentence(row, message):
    with pytest.raises(ServerError, match=message) as caught:
        make_table("exits", [row])
    assert "\n" not in str(caught.value)


def test_two_rows_for_one_exit_are_refused():
    with pytest.raises(ServerError, match="two rows"):
        make_table("exits", [exit_row(), exit_row(accuracy=0.7)])


def test_means_of_a_round_weigh_users_equally_and_leave_failures_out(tmp_path):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    clients = [
        client_row(client="a", accuracy_after=1.0, num_train=10, bytes_up=100),
        client_row(client="b", accuracy_after=0.5, num_train=1000, bytes_up=300),
        {"round": 1, "client_id": "c", "status": "failed: no answer", "bytes_up": 7},
    ]
    run.append_round([], clients, {"round": 1, "replies": 2, "failures": 1, "seconds": 2.5})
    row = run.tables().rounds.to_pylist()[0]
    assert (row["users"], row["accuracy_after"], row["bytes_up"], row["seconds"]) == (2, 0.75, 407, 2.5)


def test_a_folder_that_holds_a_run_is_refused_and_stays_as_it_was(tmp_path):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    run.append_round(**round_of())
    before = digests(run.path)
    with pytest.raises(ServerError, match=r"holds a run already.*--resume.*--overwrite") as caught:
        RunFolder.create(tmp_path / "r", {**CONFIG, "seed": 2})
    assert "\n" not in str(caught.value)
    assert digests(run.path) == before
    assert RunFolder.open(run.path).config == CONFIG


def test_overwriting_removes_the_old_run_and_nothing_else(tmp_path):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    run.append_round(**round_of())
    (run.path / "notes.txt").write_text("mine")
    (run.path / "clients" / "a").mkdir(parents=True)
    again = RunFolder.create(tmp_path / "r", {**CONFIG, "seed": 2}, overwrite=True)
    assert sorted(entry.name for entry in again.path.iterdir()) == ["config.json", "notes.txt"]
    assert again.completed_rounds == ()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_in_it_is_never_overwritten(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ServerError, match="something other than a run"):
        RunFolder.create(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_may_be_used_and_a_file_may_not(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty", CONFIG).completed_rounds == ()
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="is a file"):
        RunFolder.create(tmp_path / "file", CONFIG)


def test_a_resumed_run_goes_on_after_its_last_completed_round(tmp_path):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    run.append_round(**round_of(1))
    straight = RunFolder.create(tmp_path / "straight", CONFIG)
    for number in (1, 2):
        straight.append_round(**round_of(number))
    # interrupted in round 2: exits.parquet was written, rounds.parquet was not
    write_table(run.path, "exits", make_table("exits", [*round_of(1)["exits"], *round_of(2)["exits"]]))
    assert set(run.tables().exits.column("round").to_pylist()) == {1}
    resumed = RunFolder.create(tmp_path / "r", {**CONFIG, "rounds": 2}, resume=True, may_differ={"rounds"})
    assert resumed.completed_rounds == (1,)
    assert set(read_table(resumed.path, "exits").column("round").to_pylist()) == {1}
    resumed.append_round(**round_of(2))
    assert digests(resumed.path) == digests(straight.path)


def test_resuming_with_other_settings_is_refused_by_name(tmp_path):
    RunFolder.create(tmp_path / "r", CONFIG)
    with pytest.raises(ServerError, match="seed=1, now seed=2"):
        RunFolder.create(tmp_path / "r", {**CONFIG, "seed": 2}, resume=True)
    with pytest.raises(ServerError, match="exclude each other"):
        RunFolder.create(tmp_path / "r", CONFIG, resume=True, overwrite=True)
    with pytest.raises(ServerError, match="is no folder"):
        RunFolder.create(tmp_path / "other", CONFIG, resume=True)


def test_a_round_can_be_added_once_and_only_whole(tmp_path):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    run.append_round(**round_of())
    with pytest.raises(ServerError, match="cannot follow round 1"):
        run.append_round(**round_of())
    with pytest.raises(ServerError, match="is of round 1, expected round 2"):
        run.append_round(**{**round_of(2), "exits": round_of(1)["exits"]})
    assert run.completed_rounds == (1,)


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_or_cut_off_table_is_one_sentence(tmp_path, name):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    run.append_round(**round_of())
    whole = (run.path / name).read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        (run.path / name).write_bytes(whole[:length])
        with pytest.raises(ServerError, match="not a whole parquet file") as caught:
            run.tables()
        assert name in str(caught.value) and "\n" not in str(caught.value)
    (run.path / name).unlink()
    with pytest.raises(ServerError, match=f"has no {name}"):
        run.tables()


def test_a_cut_off_config_and_a_folder_without_one_are_one_sentence(tmp_path):
    with pytest.raises(ServerError, match="is no run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ServerError, match="not whole JSON"):
        RunFolder.open(tmp_path)


def test_what_a_kill_in_the_first_write_left_is_cleaned_up(tmp_path):
    (tmp_path / ".config.json.abcdefgh.persephonee.tmp").write_text("{")
    RunFolder.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_overwriting_removes_nothing_from_a_folder_that_no_run_made(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model").mkdir()
    with pytest.raises(ServerError, match="nothing is removed"):
        RunFolder.create(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize("link", ["clients", "log.txt", "clients/a"])
def test_a_run_folder_whose_parts_are_links_is_not_written_to(tmp_path, link):
    (tmp_path / "outside").mkdir()
    run = RunFolder.create(tmp_path / "run", CONFIG)
    (run.path / link).parent.mkdir(exist_ok=True)
    (run.path / link).symlink_to(tmp_path / "outside")
    for flags in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(ServerError, match="is a link"):
            RunFolder.create(run.path, CONFIG, **flags)


def test_a_flipped_bit_in_a_table_is_noticed_or_changes_nothing(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG)
    run.append_round([exit_row()], [client_row()], {"round": 1, "replies": 1, "failures": 0})
    path = tmp_path / "clients.parquet"
    whole, table = path.read_bytes(), run.tables().clients
    for i in range(0, len(whole), 13):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        with contextlib.suppress(ServerError):
            assert run.tables().clients.equals(table)
