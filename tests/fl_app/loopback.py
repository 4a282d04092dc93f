"""A federation on loopback: a SuperLink with TLS, SuperNodes with keys, started as their systemd units say."""

import json
import os
import resource
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil

from persephonee.fl_app.deployment.systemd_units import RESTART_SECONDS
from persephonee.fl_app.server_side.run_status import RunStatus, read_status
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.settings.run_config import toml_value
from persephonee.fl_app.simulation.app_folder import write_app_folder
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.commands.command_line import call

ROOT = Path(__file__).resolve().parents[2]
IDS = ("s0w0000", "s0w0001")
STRANGER = "s0w0002"
LONG = 2_500
"""Epochs that keep the faster of the two devices at work for half a minute, on a quiet machine too."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Unit:
    """A service, run as its unit file says but for its user and its protection."""

    file: Path
    process: subprocess.Popen | None = None
    ended: float | None = None
    largest_file: int | None = None
    """In bytes: what it may write into one file, as where the disk is nearly full."""

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
                preexec_fn=self._limit,
            )

    def _limit(self) -> None:
        if self.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file, self.largest_file))

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

    def start_and_join(self) -> None:
        """Start it and wait until the SuperLink lets it in, which after a kill takes a minute."""

        def joined() -> int:
            return self.log.read_text().count("SuperNode ID")

        before = joined()
        self.start()

        def is_in() -> bool:
            self.tend()
            return joined() > before

        wait_for(is_in, 180)

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
        texts = (f"{k}={toml_value(str(v) if isinstance(v, Path) else v)}" for k, v in config.items())
        self.flwr("run", self.folder / "app", "devices", "--run-config", " ".join(texts))
        return self.folder / name

    def stored(self, name: str) -> dict[str, bytes]:
        """Return all that a device has stored, by path."""
        store = self.folder / "stores" / name
        return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}

    def wait_until_reachable(self) -> None:
        wait_for(lambda: call("device", "doctor", self.folder / IDS[0]).exit_code == 0, 120)


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


def wait_until_personalising(run: Path) -> None:
    wait_for(lambda: (read_status(run) or RunStatus()).doing == "personalising", 240)


def client_apps(unit: Unit, cpu_seconds: float = 10.0) -> list[psutil.Process]:
    """Return the processes of a device that personalise, once they have taken so much of a processor's time.

    By then it is at work: to load torch takes half of it. In place of a process that ends before it has fetched its
    message Flower starts another one.
    """

    def at_work() -> list[psutil.Process]:
        try:
            return [p for p in unit.programs("flwr-clientapp") if sum(p.cpu_times()[:2]) >= cpu_seconds]
        except psutil.NoSuchProcess:
            return []

    return wait_for(at_work, 120)


def statuses(run: Path) -> pd.Series:
    return pd.read_parquet(run / "clients.parquet").set_index("client_id").status


def seconds_of(run: Path) -> float:
    return float(pd.read_parquet(run / "rounds.parquet").seconds.iloc[0])


def note(record, fault: str, outcome: str, seconds: float) -> None:
    """Record a row of the table in docs/reliability.md."""
    for name, value in (("fault", fault), ("outcome", outcome), ("seconds", f"{seconds:.0f}")):
        record(name, value)


@contextmanager
def enrolled(folder: Path, permitting: tuple[str, ...] = ()) -> Iterator[Federation]:
    """Yield a server and two devices that run, and a stranger whose key is not registered.

    Args:
        folder: for all of it.
        permitting: whose owners let exits leave.
    """
    network = build_network("squeezenet1_1", num_exits=2, num_classes=62, input_size=28, head="pooled")
    save_network(network, folder / "model", ModelMetadata())
    # a copy, which stays the same while the tests run, whatever happens to the checkout
    write_app_folder(folder / "app", AppSettings().to_run_config())
    port = free_port()
    words = ("--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", port)
    assert call("server", "init", *words, "--out", folder / "server").exit_code == 0
    made = Federation(folder, Unit(folder / "server" / "persephonee-server.service"))
    for name in (*IDS, STRANGER):
        data = ("--dataset", "synthetic-writers", "--num-writers", 3, "--sources", "torchvision")
        own = ("--client-id", name, "--store", folder / "stores" / name, "--out", folder / name, "--port", free_port())
        link = ("--superlink", f"127.0.0.1:{port}", "--root-certificate", folder / "server" / "ca.crt")
        result = call("device", "enrol", *own, *link, *data, *(["--share-exits"] if name in permitting else []))
        assert result.exit_code == 0, result.output
        made.devices[name] = Unit(folder / name / "persephonee-device.service")
    try:
        made.superlink.start()
        made.wait_until_reachable()
        for name in IDS:
            made.flwr("supernode", "register", folder / name / "device.key.pub", "devices", "--name", name)
            made.devices[name].start()
        yield made
    finally:
        for unit in (*made.devices.values(), made.superlink):
            unit.stop()
