"""Faults of devices and servers on loopback; each ends in a finished round or a named failure within its deadline.

`make test-faults` runs these and test_devices_slow.py, and writes the table in docs/reliability.md from what they
record.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from persephonee.fl_app.server_side.run_status import FINISHED
from persephonee.multi_exit.storage import load_network
from tests.fl_app.loopback import (
    IDS,
    LONG,
    Federation,
    client_apps,
    ending_of,
    enrolled,
    note,
    seconds_of,
    statuses,
    wait_until_personalising,
)

pytestmark = pytest.mark.slow

BAD, GOOD = IDS
DEADLINE = 240.0


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    # only one of the owners lets exits leave the device
    with enrolled(tmp_path_factory.mktemp("federation"), permitting=(BAD,)) as made:
        yield made


@pytest.fixture(scope="module")
def first(federation) -> Path:
    """The run folder of a first round, after which both devices hold the model and exits of their own."""
    run = federation.run("first")
    assert ending_of(run, 300).state == FINISHED
    return run


def finished(run: Path, tended=()) -> Path:
    status = ending_of(run, DEADLINE + 120, tended)
    assert status.state == FINISHED, status.doing
    assert seconds_of(run) < DEADLINE + 5
    return run


def installed(federation: Federation, name: str) -> Path:
    """Return the folder of the app that a device was sent last."""
    apps = (federation.folder / name / "flower" / "apps").iterdir()
    return max(apps, key=lambda path: path.stat().st_mtime)


class Altered:
    """A device's copy of the app with other code in it, for a while; Flower does not look whether it is what it sent.

    The device pretends to run the server's code.
    """

    def __init__(self, app: Path, file: str, old: str, new: str, *, pretends: bool = True) -> None:
        self._changes = {app / file: lambda text: text.replace(old, new, 1)}
        assert old in (app / file).read_text()
        if pretends:
            honest = f"\n\ndef code_fingerprint():\n    return {_code(app)!r}\n"
            self._changes[app / "fl_app" / "code_fingerprint.py"] = lambda text: text + honest
        self._before = {path: path.read_text() for path in self._changes}

    def __enter__(self) -> None:
        for path, change in self._changes.items():
            path.write_text(change(self._before[path]))

    def __exit__(self, *_: object) -> None:
        for path, text in self._before.items():
            path.write_text(text)


def _code(app: Path) -> str:
    """Return the fingerprint that the app's own code has, from another process."""
    words = [
        sys.executable,
        "-c",
        "from persephonee.fl_app.wire.code_fingerprint import code_fingerprint; print(code_fingerprint())",
    ]
    return subprocess.run(words, cwd=app, capture_output=True, text=True, check=True).stdout.strip()


def test_a_client_process_that_is_killed_is_a_named_failure_and_the_device_takes_part_again(
    federation, first, record_property
):
    before = federation.stored(BAD)
    run = federation.run("killed", epochs=LONG, round_deadline=DEADLINE)
    wait_until_personalising(run)
    for process in client_apps(federation.devices[BAD]):
        process.kill()
    finished(run)
    assert statuses(run).to_dict() == {
        BAD: "failed: the client's process died, perhaps for want of memory",
        GOOD: "ok",
    }
    assert before.items() <= federation.stored(BAD).items()
    note(record_property, "the ClientApp's process is killed during a round", statuses(run)[BAD], seconds_of(run))

    assert set(statuses(finished(federation.run("after-killed")))) == {"ok"}


def test_a_device_that_cannot_write_keeps_what_it_had_and_is_named(federation, first, record_property):
    unit, before = federation.devices[BAD], federation.stored(BAD)
    unit.stop()
    # less than the exits take; the system refuses what goes beyond, as it refuses a full disk
    unit.largest_file = 2**20
    # a run that began earlier would ask the SuperNode that is gone
    unit.start_and_join()
    run = finished(federation.run("full", round_deadline=DEADLINE), tended=(unit,))
    assert statuses(run)[GOOD] == "ok"
    assert statuses(run)[BAD] == f"failed: the device cannot read or write its files ({os.strerror(errno.EFBIG)})"
    assert before == federation.stored(BAD)
    note(record_property, "a device's disk is full", statuses(run)[BAD], seconds_of(run))

    unit.stop()
    unit.largest_file = None
    unit.start_and_join()
    assert set(statuses(finished(federation.run("after-full"), tended=(unit,)))) == {"ok"}


def test_a_device_with_other_code_is_refused_by_name(federation, first, record_property):
    app = installed(federation, BAD)
    altered = Altered(app, "clients/personalisation/risk/pruning.py", '"""', '"""An older version. ', pretends=False)
    before = federation.stored(BAD)
    with altered:
        run = finished(federation.run("other-code", round_deadline=DEADLINE))
    assert statuses(run)[GOOD] == "ok"
    assert "the server runs other code" in statuses(run)[BAD]
    assert before == federation.stored(BAD)
    note(record_property, "a device runs another version of the code", statuses(run)[BAD], seconds_of(run))


def test_a_server_that_asks_for_exits_without_permission_gets_figures_only(federation, first, record_property):
    run = finished(federation.run("asked", share_exits=True, min_sharers=1, round_deadline=DEADLINE))
    clients = pd.read_parquet(run / "clients.parquet").set_index("client_id")
    assert set(clients.status) == {"ok"}
    sharing = pd.read_parquet(run / "sharing.parquet").set_index("client_id")
    assert sharing.outcome[BAD] == "shared"
    assert clients.bytes_up[BAD] > 1_000_000
    assert sharing.outcome[GOOD] == "not permitted"
    assert clients.bytes_up[GOOD] <= 4_096
    outcome = f"figures only; the report says: {sharing.outcome[GOOD]}"
    note(record_property, "a server asks for exits without the owner's permission", outcome, seconds_of(run))


# what a device's own code does to an array of the exits just before it leaves, past all of the device's checks
LIES = {
    "a value that is not a number": ("values[0] = np.nan", "a value is not finite"),
    "exits of a wrong shape": ("values = values.reshape(1, -1)", "got float32 of shape (1, "),
    "a hundred times too much": ("values = np.tile(values, 100)", "values of float32, got "),
}
LIE = """\
    if "exits" in reply:
        import numpy as np
        from flwr.app import Array

        name = sorted(reply["exits"])[0]
        values = reply["exits"][name].numpy().copy()
        {lie}
        reply["exits"][name] = Array(values)
    return reply
"""


@pytest.mark.parametrize("what", LIES)
def test_exits_that_are_none_are_refused_and_named_and_not_merged(federation, first, record_property, what):
    lie, says = LIES[what]
    end = "    return reply\n\n\ndef _node("
    file = "fl_app/client_side/client_app.py"
    with Altered(installed(federation, BAD), file, end, f"{LIE.format(lie=lie)}\n\ndef _node("):
        name = f"lie-{list(LIES).index(what)}"
        run = finished(federation.run(name, share_exits=True, min_sharers=1, round_deadline=DEADLINE))
    outcome = pd.read_parquet(run / "sharing.parquet").set_index("client_id").outcome[BAD]
    assert outcome.startswith("refused: exits/0.")
    assert says in outcome
    given, merged = (load_network(folder)[0] for folder in (federation.folder / "model", run / "model"))
    assert merged.fingerprint == given.fingerprint
    note(record_property, f"a client sends {what}", outcome, seconds_of(run))
