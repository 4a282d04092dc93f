"""kill -9 at 20 random moments of a personalisation round; `make test-slow` tries 200."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from tests.clients.runtime.killed_device import LIVED
from tests.clients.runtime.scripted_device import start
from tests.conftest import REPOSITORY
from tests.tiny_cnn import NAME, SIDE, SOURCE

KILLS = [pytest.param(20, id="some"), pytest.param(200, id="many", marks=pytest.mark.slow)]


class Nursery:
    """The process whose children are killed."""

    def __init__(self, model: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.clients.runtime.killed_device", str(model)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.round_s = 0.0
        assert self._line() == "ready"

    def life(self, store: Path, number: int, kill_after: float | None) -> list[str]:
        """Return what a child said; with `kill_after` it was killed so many seconds after its round began."""
        self.process.stdin.write(f"{store} {number} {'no' if kill_after is not None else 'yes'}\n")
        child = int(self._line().removeprefix("child "))
        said, began = [], 0.0
        while (line := self._line()) != "gone":
            said.append(line)
            if line == "event round begins":
                began = time.monotonic()
            if line == "event round done":
                self.round_s = time.monotonic() - began
            if line == "event round begins" and kill_after is not None:
                threading.Timer(kill_after, _kill, (child,)).start()
        return said

    def _line(self) -> str:
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait(10)


def _kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


@pytest.fixture
def model(tmp_path) -> Path:
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,), seed=1)
    save_network(network, tmp_path / "model", ModelMetadata())
    return tmp_path / "model"


def in_force(network: MultiExitNetwork, store: Path) -> str:
    """Return a digest of the exits and the policy that the exit store holds, "" for the global ones."""
    stored = ExitStore(store).load(network.backbone_fingerprint, network.exit_state(), LIVED.client_id)
    if stored is None:
        return ""
    digest = hashlib.sha256(f"{stored.round} {stored.policy}".encode())
    for name in sorted(stored.exit_weights):
        digest.update(stored.exit_weights[name].tobytes())
    return digest.hexdigest()


def check_the_next_start(network: MultiExitNetwork, store: Path, acknowledged: set[str]) -> None:
    """Start a device on what the kill left behind."""
    now = in_force(network, store)
    life = start(network, store, LIVED)
    assert life.database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert acknowledged <= set(life.device.samples.keys())
    assert in_force(network, store) == now
    stored = ExitStore(store).load(network.backbone_fingerprint, network.exit_state(), LIVED.client_id)
    state = life.device.orchestrator.state
    assert (state.round, state.phase.value) == (stored.round if stored else 0, "inference")
    if stored is not None:
        assert life.device.policy == stored.policy
        loaded = network.exit_state()
        assert all(np.array_equal(loaded[name], tensor) for name, tensor in stored.exit_weights.items())
    life.stop()


@pytest.mark.parametrize("kills", KILLS)
def test_a_kill_at_any_moment_of_a_round_leaves_the_old_or_the_new_exits_and_every_sample(model, tmp_path, kills):
    network, _ = load_network(model, allowed=(SOURCE,))
    nursery = Nursery(model)
    random_moment = random.Random(0)
    store, twin = tmp_path / "store", tmp_path / "twin"
    store.mkdir()
    acknowledged: set[str] = set()
    outcomes = {"old": 0, "new": 0}
    try:
        nursery.life(tmp_path / "first", 0, None)
        span = 1.3 * nursery.round_s
        for number in range(kills):
            before = in_force(network, store)
            shutil.rmtree(twin, ignore_errors=True)
            shutil.copytree(store, twin)
            said = nursery.life(store, number, random_moment.uniform(0, span))
            acknowledged |= {line.removeprefix("stored ") for line in said if line.startswith("stored ")}
            if in_force(network, store) == before:
                outcomes["old"] += 1
                # the next kill comes later, and in the other case sooner: most come about when rounds end
                span *= 1.2
            else:
                # the same life on a copy, without a kill: its exits and its policy are the new ones
                assert nursery.life(twin, number, None)[-1] == "event round done"
                assert in_force(network, store) == in_force(network, twin)
                outcomes["new"] += 1
                span /= 1.2
            check_the_next_start(network, store, acknowledged)
    finally:
        nursery.close()
    assert min(outcomes.values()) >= kills // 10, outcomes
    assert len(acknowledged) >= kills * 3
