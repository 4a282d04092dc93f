"""Real devices on loopback: a SuperLink with TLS, SuperNodes with keys, started as their systemd units say."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner

from fl_app.command_line import app
from fl_app.run_status import FINISHED, RunStatus, read_status
from fl_app.systemd_units import RESTART_SECONDS
from multi_exit.building import build_network
from multi_exit.storage import ModelMetadata, save_network

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
IDS = ("s0w0000", "s0w0001")
STRANGER = "s0w0002"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@dataclass
class Unit:
    """A service, run as its unit file says but for its user and its protection."""

    file: Path
    process: subprocess.Popen | None = None
    ended: float | None = None

    @property
    def log(self) -> Path:
        return self.file.parent / "log.txt"

    def start(self) -> None:
        values = [line.partition("=")[::2] for line in self.file.read_text().splitlines()]
        environment = dict(shlex.split(value)[0].split("=", 1) for key, value in values if key == "Environment")
        (directory,) = (value for key, value in values if key == "WorkingDirectory")
        (command,) = (value for key, value in values if key == "ExecStart")
        self.ended = None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                shlex.split(command),
                cwd=directory,
                env={"HOME": directory, "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End everything at once, as a power cut does."""
        if self.process is not None and self.process.poll() is None:
            everything = [*psutil.Process(self.process.pid).children(recursive=True), self.process]
            for process in everything:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            self.process.wait()

    def tend(self) -> None:
        """Start it again some time after it ended, as systemd does."""
        if self.process.poll() is not None:
            self.ended = self.ended or time.monotonic()
            if time.monotonic() - self.ended > RESTART_SECONDS:
                self.start()

    def programs(self, name: str) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if any(name in part for part in _command_of(child))]


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@dataclass
class Federation:
    """A server and its devices."""

    folder: Path
    superlink: Unit
    devices: dict[str, Unit] = field(default_factory=dict)

    def flwr(self, *words: object) -> dict:
        done = subprocess.run(
            [Path(sys.executable).parent / "flwr", *map(str, words), "--format", "json"],
            cwd=ROOT,
            env={**os.environ, "FLWR_HOME": str(self.folder / "server" / "flwr")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout[done.stdout.index("{") :])

    def run(self, name: str, **more: object) -> Path:
        """Start a run as docs/devices.md does, and return its run folder."""
        config = {
            "model": self.folder / "model",
            "run-dir": self.folder / name,
            "clients": len(IDS),
            "epochs": 1,
            "round-deadline": 240.0,
            **{key.replace("_", "-"): value for key, value in more.items()},
        }
        texts = (f"{k}={json.dumps(str(v)) if isinstance(v, Path | str) else v}" for k, v in config.items())
        self.flwr("run", ".", "devices", "--run-config", " ".join(texts))
        return self.folder / name


def wait_for(what, seconds: float):
    """Return the first true answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"nothing came of it within {seconds} s")


def ending_of(run: Path, seconds: float, tended: tuple[Unit, ...] = ()) -> RunStatus:
    def ended():
        for unit in tended:
            unit.tend()
        status = read_status(run)
        return status if status and status.has_ended else None

    return wait_for(ended, seconds)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    network = build_network("squeezenet1_1", num_exits=2, num_classes=62, input_size=28, head="pooled")
    save_network(network, folder / "model", ModelMetadata())
    port = free_port()
    words = ("--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", port)
    assert call("server", "init", *words, "--out", folder / "server").exit_code == 0
    made = Federation(folder, Unit(folder / "server" / "persephonee-server.service"))
    for name in (*IDS, STRANGER):
        data = ("--dataset", "synthetic-writers", "--num-writers", 3, "--sources", "torchvision")
        own = ("--client-id", name, "--store", folder / "stores" / name, "--out", folder / name, "--port", free_port())
        link = ("--superlink", f"127.0.0.1:{port}", "--root-certificate", folder / "server" / "ca.crt")
        result = call("device", "enrol", *own, *link, *data)
        assert result.exit_code == 0, result.output
        made.devices[name] = Unit(folder / name / "persephonee-device.service")
    try:
        made.superlink.start()
        wait_for(lambda: call("device", "doctor", folder / IDS[0]).exit_code == 0, 120)
        for name in IDS:
            made.flwr("supernode", "register", folder / name / "device.key.pub", "devices")
            made.devices[name].start()
        yield made
    finally:
        for unit in (*made.devices.values(), made.superlink):
            unit.stop()


@pytest.fixture(scope="module")
def first(federation) -> Path:
    """The run folder of a first round on both devices."""
    run = federation.run("first")
    status = ending_of(run, 300)
    assert status.state == FINISHED, status.doing
    return run


def stored(federation: Federation, name: str) -> dict[str, bytes]:
    store = federation.folder / "stores" / name
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_round_on_two_enrolled_devices_ends_in_the_same_report_as_a_simulation(federation, first):
    clients = pd.read_parquet(first / "clients.parquet")
    assert list(clients.client_id) == list(IDS)
    assert list(clients.status) == ["ok", "ok"]
    assert (first / "report.html").stat().st_size > 10_000
    # the model goes down once, figures come up
    assert clients.bytes_up.max() <= 4_096
    assert clients.bytes_down.min() > 1_000_000
    assert all("state.json" in stored(federation, name) for name in IDS)


def test_a_device_whose_key_is_not_registered_is_refused(federation):
    stranger = federation.devices[STRANGER]
    stranger.start()
    try:
        assert stranger.process.wait(timeout=120) != 0
    finally:
        stranger.stop()
    assert "Failed to activate SuperNode" in stranger.log.read_text()
    # the link is not to blame: another device's key lets it in
    assert federation.devices[IDS[0]].process.poll() is None
    assert not (federation.folder / "stores" / STRANGER / "state.json").exists()


def test_a_supernode_killed_during_a_round_is_a_named_failure_and_takes_part_again(federation, first):
    lost, other = (federation.devices[name] for name in IDS)
    before, deadline = stored(federation, IDS[0]), 240.0
    run = federation.run("killed", epochs=60, round_deadline=deadline)
    wait_for(lambda: (read_status(run) or RunStatus()).doing == "personalising", 240)
    asked = time.time()
    wait_for(lambda: [p for p in lost.programs("flwr-clientapp") if p.create_time() > asked], 60)
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
    # nothing that it had stored is lost
    assert before.items() <= stored(federation, IDS[0]).items()

    again = federation.run("again")
    assert ending_of(again, 400, tended=(lost,)).state == FINISHED
    clients = pd.read_parquet(again / "clients.parquet")
    assert list(clients.status) == ["ok", "ok"]
    # the model was there still
    assert clients.bytes_down.max() <= 2_048


def test_a_superlink_killed_between_rounds_knows_its_devices_again(federation, first):
    units = (federation.superlink, *(federation.devices[name] for name in IDS))
    federation.superlink.stop()
    federation.superlink.start()
    wait_for(lambda: call("device", "doctor", federation.folder / IDS[0]).exit_code == 0, 120)
    run = federation.run("restarted")
    status = ending_of(run, 400, tended=units)
    assert status.state == FINISHED, status.doing
    assert list(pd.read_parquet(run / "clients.parquet").status) == ["ok", "ok"]
