"""`persephonee simulate` with Flower and Ray; what does not need them is in test_rounds.py."""

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch

from persephonee.clients.errors import ClientSettingsError
from persephonee.data_partitions.errors import NotEnoughUsersError
from persephonee.fl_app.errors import AppError, RunFailedError
from persephonee.fl_app.server_side import server_app
from persephonee.fl_app.server_side.run_status import FAILED, FINISHED, RunStatus, StatusFile
from persephonee.fl_app.settings.app_settings import AppSettings, PathSettings
from persephonee.fl_app.simulation import run_progress
from persephonee.fl_app.simulation import simulate as simulation
from persephonee.fl_app.simulation.run_progress import shown_run
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.errors import MultiExitError, SettingsError
from persephonee.multi_exit.settings import ComputeSettings
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from persephonee.server.errors import ServerError


@pytest.fixture
def small_run(tmp_path) -> AppSettings:
    """Two built-in writers with an untrained SqueezeNet: what an installed package can do anywhere."""
    network = build_network("squeezenet1_1", num_exits=2, num_classes=62, input_size=28, head="pooled")
    save_network(network, tmp_path / "model", ModelMetadata())
    config = {"num-writers": 3, "clients": 2, "epochs": 1, "model": str(tmp_path / "model")}
    return AppSettings.from_run_config({**config, "run-dir": str(tmp_path / "run")})


@pytest.fixture
def scratch(monkeypatch):
    """A place for temporary files whose path is short enough for Ray."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
        monkeypatch.setattr(tempfile, "tempdir", None)


def ours(folder: Path) -> list[psutil.Process]:
    """Processes that were started for a run in `folder`, by their working directories."""
    found = []
    for process in psutil.process_iter():
        try:
            if "persephonee-" in process.cwd() and str(folder) in process.cwd():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def listened_on(process: psutil.Process) -> set[str]:
    """Return the addresses on which a process takes connections."""
    try:
        found = process.net_connections(kind="inet")
    except psutil.Error:
        return set()
    return {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}


def is_loopback(text: str) -> bool:
    address = ip_address(text)
    # a socket of both families names IPv4's addresses so
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_two_clients_over_flower_and_ray_give_what_one_process_gives(
    small_run, simulated_nodes, make_grid, scratch, tmp_path, monkeypatch
):
    run_dir = simulation.simulate(small_run)
    clients = pd.read_parquet(run_dir / "clients.parquet")
    assert list(clients.status) == ["ok", "ok"]
    assert clients.bytes_up.max() <= 4_096
    assert clients.bytes_down.max() <= 2_048
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert sorted(path.name for path in (run_dir / "clients").iterdir()) == list(clients.client_id)
    assert "Round 1: 2 replies, 0 failures" in (run_dir / "log.txt").read_text()
    assert ours(scratch) == []
    assert list(scratch.iterdir()) == []

    here = replace(small_run, paths=replace(small_run.paths, run_dir=tmp_path / "here"))
    monkeypatch.setattr(server_app, "draw_report", lambda run: run / "report.html")
    server_app.serve(make_grid(simulated_nodes(2), here), here, here.paths.model, here.paths.run_dir)
    assert (run_dir / "exits.parquet").read_bytes() == (here.paths.run_dir / "exits.parquet").read_bytes()
    other = pd.read_parquet(here.paths.run_dir / "clients.parquet")
    times = ["seconds_personalise"]
    pd.testing.assert_frame_equal(clients.drop(columns=times), other.drop(columns=times), check_exact=True)


@pytest.mark.slow
def test_a_run_in_which_every_client_fails_raises_and_says_why(small_run):
    # labels of nobody, and a loss that learns from labels alone
    hopeless = AppSettings.from_run_config({**small_run.to_run_config(), "labels": "none", "alpha": 1.0})
    with pytest.raises(RunFailedError, match=r"0 of 2 clients personalised.*no labelled training sample.*log\.txt"):
        simulation.simulate(hopeless)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_listens_on_loopback_alone_and_when_it_is_stopped_leaves_no_process_and_no_folder(
    small_run, scratch, number
):
    program = (
        "import sys, json; from persephonee.fl_app.settings.app_settings import AppSettings; "
        "from persephonee.fl_app.simulation.simulate import simulate\n"
    )
    program += "simulate(AppSettings.from_run_config(json.loads(sys.argv[1])))"
    long = {**small_run.to_run_config(), "epochs": 5000}
    process = subprocess.Popen([sys.executable, "-c", program, json.dumps(long)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not any("ray::" in " ".join(p.cmdline()) for p in ours(scratch)) and time.monotonic() < end:
        time.sleep(0.5)
    everybody = ours(scratch)
    names = {one.name() for one in everybody}
    listening = {address for one in everybody for address in listened_on(one)}
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    assert ours(scratch) == []
    assert list(scratch.iterdir()) == []
    assert any("raylet" in name for name in names), names
    assert listening and all(is_loopback(address) for address in listening), listening


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"clients": 4}, NotEnoughUsersError, "4 users were asked for and there are 3"),
        ({"model": "nowhere"}, ValueError, "nowhere is no model folder"),
        ({"dataset": "parquet", "data-path": "nowhere.parquet"}, ValueError, "nowhere.parquet"),
        ({"run-dir": "", "resume": True}, AppError, "name it with --run-dir"),
    ],
)
def test_bad_input_is_refused_before_flower_starts(small_run, tmp_path, monkeypatch, change, error, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulation, "_run", lambda *arguments: pytest.fail("Flower was started"))
    with pytest.raises(error, match=words):
        simulation.simulate(AppSettings.from_run_config({**small_run.to_run_config(), **change}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("schedule", "rounds", "exits_of_each"), [("paper", 1, 1), ("paper", 3, 2), ("fast", 3, 2)])
def test_a_disk_that_the_users_exits_would_fill_is_refused_before_flower_starts(
    small_run, monkeypatch, schedule, rounds, exits_of_each
):
    settings = AppSettings.from_run_config({**small_run.to_run_config(), "rounds": rounds, "schedule": schedule})
    network, _ = load_network(settings.model_folder(0))
    # pooled heads hold floats alone
    stored = network.heads if schedule == "paper" else torch.nn.ModuleList(head.classifier for head in network.heads)
    needed = 2 * exits_of_each * 4 * sum(parameter.numel() for parameter in stored.parameters())

    def run_with(free: int) -> Path:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
        return simulation.simulate(settings)

    for step in ("_run", "_draw"):
        monkeypatch.setattr(simulation, step, lambda *arguments: None)
    with pytest.raises(AppError, match=r"the exits of 2 users take .* make room"):
        run_with(needed - 1)
    run_dir = settings.run_folder(0)
    assert not run_dir.exists()
    run_with(needed)
    # of a run that is overwritten, the exits make room
    (run_dir / "clients" / "ada").mkdir(parents=True)
    (run_dir / "clients" / "ada" / "exits").write_bytes(bytes(needed))
    settings = replace(settings, paths=replace(settings.paths, overwrite=True))
    run_with(0)


def test_a_run_that_is_not_there_cannot_be_resumed_and_nothing_is_pretrained_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "obtain_model", lambda *arguments: pytest.fail("a model was pretrained"))
    typo = AppSettings.from_run_config({"run-dir": str(tmp_path / "typo"), "resume": True})
    with pytest.raises(ServerError, match="typo is no folder: expected the folder of a run"):
        simulation.simulate(typo)
    (tmp_path / "typo").mkdir()
    with pytest.raises(ServerError, match=r"typo is no run folder: it has no config\.json"):
        simulation.simulate(typo)
    assert [path.name for path in tmp_path.iterdir()] == ["typo"]
    assert not any((tmp_path / "typo").iterdir())


def test_a_run_folder_that_exists_is_refused_and_stays_as_it_was(small_run, monkeypatch):
    for step in ("_run", "_draw"):
        monkeypatch.setattr(simulation, step, lambda *arguments: None)
    run_dir = simulation.simulate(small_run)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(ServerError, match="holds a run already"):
        simulation.simulate(small_run)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


class SilentLink:
    """A SuperLink whose run ended without a word of the ServerApp."""

    is_simulating = False

    def __init__(self):
        self.predictions = ["", "the run ended as finished:failed: no module named x"]

    def ending_of(self, run_id):
        return self.predictions.pop(0)


def test_a_run_that_dies_without_a_word_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "SECONDS_BETWEEN_CHECKS", 0.0)
    monkeypatch.setattr(simulation, "SECONDS_BETWEEN_LOOKS", 0.0)
    StatusFile(tmp_path).write(RunStatus(round=1, asked=2))
    seen = []
    status = simulation._followed(SilentLink(), "1", tmp_path, seen.append)
    assert (status.state, status.asked) == (FAILED, 2)
    assert status.doing == "the run ended as finished:failed: no module named x"
    assert seen == [RunStatus(round=1, asked=2)] * 2


def test_two_runs_of_one_second_have_folders_of_their_own_and_a_refused_one_leaves_none(
    small_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulation, "datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5)))
    monkeypatch.setattr(simulation, "_run", lambda *rest: None)
    monkeypatch.setattr(simulation, "_draw", lambda *rest: None)
    unnamed = replace(small_run, paths=replace(small_run.paths, run_dir=None))
    folders = [simulation.simulate(unnamed) for _ in range(2)]
    assert [folder.name for folder in folders] == ["simulation-20260102-030405", "simulation-20260102-030405-2"]
    too_many = replace(unnamed, rounds=replace(unnamed.rounds, clients=9))
    with pytest.raises(NotEnoughUsersError):
        simulation.simulate(too_many)
    assert sorted((tmp_path / "runs").iterdir()) == folders


def test_more_clients_than_pretraining_leaves_are_refused_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "obtain_model", lambda *rest: pytest.fail("it was pretrained"))
    config = {"num-writers": 30, "run-dir": str(tmp_path / "run"), "pretrain-personal-users": 5}
    with pytest.raises(NotEnoughUsersError, match=r"\b6\b.*\b5\b"):
        simulation.simulate(AppSettings.from_run_config({**config, "clients": 6}))
    assert not (tmp_path / "run").exists()
    with pytest.raises(pytest.fail.Exception, match="it was pretrained"):
        simulation.simulate(AppSettings.from_run_config({**config, "clients": 5}))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"min-samples": 5000}, AppError, "5 of the 5 users have fewer than min-samples=5000 samples"),
        ({"memory-budget": "1KB"}, ClientSettingsError, "memory_budget=1000 is too small"),
        ({"num-exits": 99}, MultiExitError, "num_exits=99 does not fit"),
        ({"client-store": "file"}, OSError, "a folder was expected"),
        ({"model-store": "file"}, OSError, "a folder was expected"),
    ],
)
def test_what_needs_no_training_to_be_found_is_found_before_it(tmp_path, monkeypatch, change, error, words):
    monkeypatch.setattr(simulation, "obtain_model", lambda *rest: pytest.fail("it was pretrained"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    config = {"num-writers": 30, "run-dir": "run", "pretrain-personal-users": 5, "clients": 5, "num-exits": 2}
    settings = AppSettings.from_run_config({**config, "backbone": "squeezenet1_1", "head": "pooled", **change})
    with pytest.raises(error, match=words):
        simulation.simulate(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("package", ["ray", "matplotlib"])
def test_a_package_that_is_needed_once_it_runs_is_missed_before_it_does(tmp_path, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    monkeypatch.setattr(simulation, "obtain_model", lambda *rest: pytest.fail("it was pretrained"))
    with pytest.raises(ModuleNotFoundError) as missed:
        simulation.simulate(AppSettings.from_run_config({"run-dir": str(tmp_path / "run")}))
    assert missed.value.name == package


def test_a_long_round_says_how_long_the_clients_that_are_left_take(caplog, monkeypatch):
    caplog.set_level("INFO", logger="persephonee.simulation")
    now = [0.0]
    monkeypatch.setattr(run_progress.time, "monotonic", lambda: now[0])
    with shown_run() as show:
        for round in (1, 2):
            for done in range(3):
                show(RunStatus(doing="personalising", round=round, rounds=2, asked=2, done=done))
                now[0] += 30.0
    assert caplog.messages == [
        "round 1/2: personalising, 0 % of 2 clients",
        "round 1/2: personalising, 50 % of 2 clients, about 90 s more",
        "round 1/2: personalising, 100 % of 2 clients",
        "round 2/2: personalising, 0 % of 2 clients",
        "round 2/2: personalising, 50 % of 2 clients, about 30 s more",
        "round 2/2: personalising, 100 % of 2 clients",
    ]


def test_the_last_line_of_a_run_says_that_all_clients_are_done(caplog):
    caplog.set_level("INFO", logger="persephonee.simulation")
    with shown_run() as show:
        show(RunStatus(doing="personalising", round=2, rounds=2, asked=4))
        show(RunStatus(state=FINISHED, doing="runs/report.html", round=2, rounds=2, done=4, asked=4))
    assert caplog.messages == ["round 2/2: personalising, 0 % of 4 clients", "round 2/2: done, 100 % of 4 clients"]


@pytest.mark.parametrize(
    ("has_gpu", "asked", "ray_address", "found"),
    [
        (False, "auto", "", "cpu"),
        (True, "auto", "", "cuda"),
        (True, "cpu", "", "cpu"),
        (False, "cuda", "", None),
        # a cluster's machines may have what this one has not
        (False, "cuda", "head:6379", "cuda"),
        (False, "auto", "head:6379", "cpu"),
    ],
)
def test_a_run_says_on_which_kind_of_device_it_computes(monkeypatch, has_gpu, asked, ray_address, found):
    def torch_device(self):
        if self.device == "cuda" and not has_gpu:
            raise SettingsError("no GPU")
        return torch.device("cuda" if has_gpu and self.device != "cpu" else "cpu")

    monkeypatch.setattr(ComputeSettings, "torch_device", torch_device)
    settings = AppSettings(compute=ComputeSettings(device=asked), paths=PathSettings(model=Path("M")))
    if found is None:
        with pytest.raises(SettingsError):
            simulation._with_device(settings, ray_address)
    else:
        assert simulation._with_device(settings, ray_address).compute.device == found
