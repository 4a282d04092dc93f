"""Real devices on loopback: a round, and what happens when a device or the server goes away."""

import time
from pathlib import Path

import pandas as pd
import pytest

from persephonee.fl_app.server_side.run_status import FINISHED
from tests.fl_app.loopback import (
    IDS,
    LONG,
    STRANGER,
    client_apps,
    ending_of,
    enrolled,
    note,
    seconds_of,
    statuses,
    wait_until_personalising,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with enrolled(tmp_path_factory.mktemp("federation")) as made:
        yield made


@pytest.fixture(scope="module")
def first(federation) -> Path:
    """The run folder of a first round on both devices."""
    run = federation.run("first")
    status = ending_of(run, 300)
    assert status.state == FINISHED, status.doing
    return run


def test_a_round_on_two_enrolled_devices_ends_in_the_same_report_as_a_simulation(federation, first):
    clients = pd.read_parquet(first / "clients.parquet")
    assert list(clients.client_id) == list(IDS)
    assert list(clients.status) == ["ok", "ok"]
    assert (first / "report.html").stat().st_size > 10_000
    # the model goes down once, figures come up
    assert clients.bytes_up.max() <= 4_096
    assert clients.bytes_down.min() > 1_000_000
    assert all("state.json" in federation.stored(name) for name in IDS)


def test_a_device_whose_key_is_not_registered_is_refused(federation, record_property):
    stranger, begin = federation.devices[STRANGER], time.monotonic()
    stranger.start()
    try:
        assert stranger.process.wait(timeout=120) != 0
    finally:
        stranger.stop()
    said = "Failed to activate SuperNode"
    assert said in stranger.log.read_text()
    seconds = time.monotonic() - begin
    note(record_property, "a device's key is not registered", f"its SuperNode ends: {said}", seconds)
    # the link is not to blame: another device's key lets it in
    assert federation.devices[IDS[0]].process.poll() is None
    assert not (federation.folder / "stores" / STRANGER / "state.json").exists()


def test_a_supernode_killed_during_a_round_is_a_named_failure_and_takes_part_again(federation, first, record_property):
    lost, other = (federation.devices[name] for name in IDS)
    before, deadline = federation.stored(IDS[0]), 240.0
    run = federation.run("killed", epochs=LONG, round_deadline=deadline)
    wait_until_personalising(run)
    client_apps(lost)
    lost.stop()
    status = ending_of(run, deadline + 60)
    assert other.process.poll() is None
    # one of two is enough by default
    assert status.state == FINISHED, status.doing
    clients = pd.read_parquet(run / "clients.parquet").set_index("client_id")
    assert clients.status[IDS[0]] == "failed: the node went away during the round"
    assert clients.status[IDS[1]] == "ok"
    rounds = pd.read_parquet(run / "rounds.parquet")
    assert rounds.failures.iloc[0] == 1
    assert rounds.seconds.iloc[0] < deadline
    note(record_property, "a SuperNode is killed during a round", statuses(run)[IDS[0]], seconds_of(run))
    # nothing that it had stored is lost; what it was asked in this round is remembered beside it
    del before["asked.json"]
    assert before.items() <= federation.stored(IDS[0]).items()

    again = federation.run("again")
    assert ending_of(again, 400, tended=(lost,)).state == FINISHED
    clients = pd.read_parquet(again / "clients.parquet")
    assert list(clients.status) == ["ok", "ok"]
    # the model was there still
    assert clients.bytes_down.max() <= 2_048


def test_a_superlink_killed_between_runs_knows_its_devices_again(federation, first, record_property):
    units = (federation.superlink, *(federation.devices[name] for name in IDS))
    federation.superlink.stop()
    federation.superlink.start()
    federation.wait_until_reachable()
    run = federation.run("restarted")
    status = ending_of(run, 400, tended=units)
    assert status.state == FINISHED, status.doing
    assert list(statuses(run)) == ["ok", "ok"]
    seconds = seconds_of(run)
    note(record_property, "the SuperLink is killed between runs, and starts again", "both devices: ok", seconds)
