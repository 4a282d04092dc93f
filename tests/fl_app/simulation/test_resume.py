"""A run that is killed at any moment and resumed leaves the tables and the model of one that was not."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from persephonee.clients.personalisation import exit_store
from persephonee.commands.run_settings import resumed_settings
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.server_side import checkpoint, server_app
from persephonee.fl_app.server_side.exit_sharing import ExitSharing
from persephonee.fl_app.server_side.run_status import read_status
from persephonee.fl_app.server_side.strategy import PersonalisationStrategy
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.simulation import resuming
from persephonee.fl_app.simulation.scratch import MARK_NAME, remove_abandoned, scratch_folder
from persephonee.fl_app.wire.differential_privacy import epsilon_after
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network
from persephonee.server.results.run_folder import RunFolder

TIMES = {"clients": ["seconds_personalise"], "rounds": ["seconds"], "exits": [], "sharing": [], "held_out": []}


class Killed(BaseException):
    """Stands for kill -9: no handler of the program sees it."""


@pytest.fixture
def two_rounds(settings, monkeypatch) -> AppSettings:
    monkeypatch.setattr(server_app, "draw_report", lambda run: run / "report.html")
    more = {"share-exits": True, "strategy": "fedadam", "rounds": 2, "held-out-fraction": 0.3, "epochs": 1}
    return AppSettings.from_run_config({**settings.to_run_config(), **more})


def at(settings, run_dir, **more):
    return AppSettings.from_run_config({**settings.to_run_config(), "run-dir": str(run_dir), **more})


def serve(settings, make_grid, simulated_nodes):
    grid = make_grid(simulated_nodes(4), settings)
    return server_app.serve(grid, settings, settings.paths.model, settings.paths.run_dir).parent


def assert_same(one: Path, other: Path) -> None:
    for name, columns in TIMES.items():
        frames = [pd.read_parquet(run / f"{name}.parquet").drop(columns=columns) for run in (one, other)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
        if not columns:
            assert (one / f"{name}.parquet").read_bytes() == (other / f"{name}.parquet").read_bytes()
    for folder in ("model", "clients"):
        files = [sorted(p.relative_to(run) for p in (run / folder).rglob("*.safetensors")) for run in (one, other)]
        assert files[0] == files[1] and files[0]
        assert all((one / path).read_bytes() == (other / path).read_bytes() for path in files[0])


def killed_after(calls, honest):
    """Return a function that does what `honest` does, and then dies, the so manieth time that it is called."""
    left = [calls]

    def dies(*arguments, **more):
        result = honest(*arguments, **more)
        left[0] -= 1
        if not left[0]:
            raise Killed
        return result

    return dies


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("clients done", "tables", "first evaluation")]


@pytest.fixture(params=["client saved round 2", "checkpoint", *SLOW])
def kill(request, monkeypatch):
    """Let the run die once: in round 2 after the second client's save, before or after the checkpoint, and so on."""
    place, name, calls = {
        "client saved round 2": (exit_store.ExitStore, "save", 4),
        "clients done": (PersonalisationStrategy, "run_round", 2),
        "checkpoint": (checkpoint.Checkpoint, "write", 3),
        "tables": (RunFolder, "append_round", 1),
        "first evaluation": (PersonalisationStrategy, "evaluate", 1),
    }[request.param]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, killed_after(calls, getattr(place, name)))
        yield patch


def test_a_resumed_run_gives_the_tables_and_the_model_of_one_that_was_not_killed(
    two_rounds, simulated_nodes, make_grid, tmp_path, kill
):
    killed = at(two_rounds, tmp_path / "killed")
    with pytest.raises(Killed):
        serve(killed, make_grid, simulated_nodes)
    kill.undo()
    kill.setattr(server_app, "draw_report", lambda run: run / "report.html")
    serve(at(killed, tmp_path / "killed", resume=True), make_grid, simulated_nodes)
    whole = serve(at(two_rounds, tmp_path / "whole"), make_grid, simulated_nodes)
    assert_same(whole, tmp_path / "killed")


def test_a_resumed_run_measures_the_same_held_out_users_and_nobody_who_took_part(two_rounds, device_node, make_grid):
    settings = at(two_rounds, two_rounds.paths.run_dir, **{"rounds": 1})

    def rounds(number, names):
        more = at(settings, settings.paths.run_dir, **{"rounds": number, "resume": number > 1})
        nodes = [device_node(name, int(name[1]) + 1) for name in names]
        run_dir = server_app.serve(make_grid(nodes, more), more, more.paths.model, more.paths.run_dir).parent
        held_out, clients = (pd.read_parquet(run_dir / f"{name}.parquet") for name in ("held_out", "clients"))
        now = held_out[held_out["round"] == number]
        return now.groupby("client_id").status.first().to_dict(), set(clients[clients["round"] == number].client_id)

    everybody = {f"u{i}" for i in range(4)}
    first, took_part = rounds(1, everybody)
    (apart,) = first
    assert first == {apart: "ok"}
    assert took_part == everybody - {apart}
    # while the held-out user's device is off, nobody who has trained takes its place
    assert rounds(2, took_part) == ({apart: "failed: no node said that it is this client"}, took_part)
    assert rounds(3, everybody) == ({apart: "ok"}, took_part)


@pytest.mark.parametrize("number", [1, 2])
def test_noise_of_clients_is_spent_again_when_a_killed_round_is_repeated(
    two_rounds, simulated_nodes, make_grid, monkeypatch, number
):
    noise = {"dp-noise-multiplier": 1.0, "dp-noise-at": "clients", "strategy": "fedavg"}
    settings = at(two_rounds, two_rounds.paths.run_dir, **noise)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        # all clients have sent their noisy exits, and nothing of it is on the server's disk
        patch.setattr(ExitSharing, "merge", killed_after(number, ExitSharing.merge))
        serve(settings, make_grid, simulated_nodes)
    for _ in range(2):
        # the second time nothing is left to do, and nothing more is spent
        serve(at(settings, settings.paths.run_dir, resume=True), make_grid, simulated_nodes)
        spent = json.loads((settings.paths.run_dir / "privacy.json").read_text())
        assert spent["rounds"] == 3
        assert spent["epsilon"] == epsilon_after(settings.privacy, 3)


def test_a_missing_checkpoint_is_named(two_rounds, simulated_nodes, make_grid):
    run_dir = serve(two_rounds, make_grid, simulated_nodes)
    assert [p.name for p in sorted((run_dir / "checkpoint").iterdir())] == [
        "round-000001.safetensors",
        "round-000002.safetensors",
    ]
    (run_dir / "checkpoint" / "round-000002.safetensors").write_bytes(b"cut")
    with pytest.raises(AppError, match=r"round-000002.safetensors is missing or damaged .* start it anew"):
        serve(at(two_rounds, run_dir, resume=True), make_grid, simulated_nodes)


def test_a_resumed_run_needs_not_be_told_its_settings_again(tmp_path):
    begun = AppSettings.from_run_config({"clients": 7, "epochs": 3, "run-dir": str(tmp_path), "model": "m"})
    resuming.keep_settings(begun, tmp_path)
    found = resumed_settings(tmp_path, ("min-sharers=3",), {"rounds": 5}).to_run_config()
    assert (found["clients"], found["epochs"], found["model"]) == (7, 3, "m")
    assert (found["rounds"], found["resume"], found["min-sharers"]) == (5, True, 3)
    kept = tmp_path / "checkpoint" / "settings.json"
    kept.write_text('{"num-server-rounds": 4, "max-users": 30}')
    older = resumed_settings(tmp_path, (), {}).to_run_config()
    assert (older["rounds"], older["pretrain-max-users"]) == (4, 30)
    kept.unlink()
    assert resumed_settings(tmp_path, (), {}).to_run_config()["clients"] == 20


def test_what_a_killed_run_left_running_is_stopped_and_a_living_run_is_refused(tmp_path):
    scratch, run_dir = tmp_path / "persephonee-abc", tmp_path / "run"
    (scratch / "work").mkdir(parents=True)
    mark = {"format": 1, "host": socket.gethostname(), "pid": 2**22 + 1, "since": 1.5}
    (scratch / MARK_NAME).write_text(json.dumps(mark))
    waits = [sys.executable, "-c", "import time; time.sleep(60)"]
    left, runner = subprocess.Popen(waits, cwd=scratch / "work"), subprocess.Popen(waits)
    try:
        with resuming.noted_scratch(run_dir, scratch):
            note = run_dir / "checkpoint" / resuming.NOTE_NAME
            since = psutil.Process(runner.pid).create_time()
            note.write_text(json.dumps({"scratch": str(scratch), "pid": runner.pid, "since": since}))
            with pytest.raises(AppError, match=f"is going on, in process {runner.pid}"):
                resuming.stop_killed_run(run_dir)
            assert left.poll() is None
            runner.kill()
            runner.wait()
            resuming.stop_killed_run(run_dir)
            # a signal has ended it, and its parent, which is this test, takes note of it now
            assert left.wait(timeout=5) < 0
            assert not scratch.exists() and not note.exists()
            resuming.stop_killed_run(run_dir)
    finally:
        left.kill()
        runner.kill()


def test_a_run_that_failed_can_be_resumed_while_its_process_lives(tmp_path):
    note = tmp_path / "run" / "checkpoint" / resuming.NOTE_NAME
    with pytest.raises(AppError, match="too few"), resuming.noted_scratch(tmp_path / "run", tmp_path / "scratch"):
        assert json.loads(note.read_text())["pid"] == os.getpid()
        raise AppError("too few replies")
    assert not note.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_of_a_simulation_in_its_second_round_changes_nothing(tmp_path):
    network = build_network("squeezenet1_1", num_exits=2, num_classes=62, input_size=28, head="msdnet")
    save_network(network, tmp_path / "model", ModelMetadata())
    words = ["simulate", "--set", "num-writers=6", "--clients", "5", "--set", "held-out-fraction=0.2", "--rounds", "3"]
    words += ["--set", "epochs=8", "--share-exits", "--model", str(tmp_path / "model")]
    program = "from persephonee.commands.application import main; main()"
    command = [sys.executable, "-c", program, *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}

    def start(*more):
        return subprocess.Popen([*command, *more], env=environment, stdout=subprocess.DEVNULL)

    assert start("--run-dir", str(tmp_path / "whole")).wait(timeout=400) == 0
    killed = start("--run-dir", str(tmp_path / "killed"))
    end = time.monotonic() + 300
    while not second_round_began(tmp_path / "killed") and time.monotonic() < end:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 1 <= rounds_in(tmp_path / "killed") < 3
    resume = [sys.executable, "-c", program, "simulate", "--resume", str(tmp_path / "killed")]
    assert subprocess.run(resume, env=environment, timeout=400, check=False).returncode == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")


def second_round_began(run: Path) -> bool:
    try:
        status = read_status(run)
    except json.JSONDecodeError:
        return False
    saved = [json.loads(path.read_text())["round"] for path in run.glob("clients/*/state.json")]
    return status is not None and status.round == 2 and saved.count(2) >= 2


def rounds_in(run: Path) -> int:
    return len(pd.read_parquet(run / "rounds.parquet"))


def note_of(run_dir, content):
    note = run_dir / "checkpoint" / resuming.NOTE_NAME
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps(content))
    return note


def test_a_note_cannot_name_a_folder_that_no_run_made(tmp_path):
    precious = tmp_path / "persephonee-photos"
    (precious / "work").mkdir(parents=True)
    note_of(tmp_path / "run", {"scratch": str(precious), "pid": 2**22 + 1, "since": 1.5})
    with pytest.raises(AppError, match="no run of yours made"):
        resuming.stop_killed_run(tmp_path / "run")
    assert (precious / "work").is_dir()


@pytest.mark.parametrize("content", [[], 3, {}, {"scratch": "/x"}, {"scratch": 3, "pid": 1, "since": 1.0}])
def test_a_damaged_note_gives_a_sentence(tmp_path, content):
    note_of(tmp_path / "run", content)
    with pytest.raises(AppError, match="damaged"):
        resuming.stop_killed_run(tmp_path / "run")


@pytest.mark.parametrize("key", ["model", "data-path", "weights", "hub-name"])
def test_what_lies_outside_a_strangers_run_folder_is_read_only_if_the_command_line_names_it(tmp_path, monkeypatch, key):
    data = {"dataset": "leaf"} if key == "data-path" else {}
    begun = AppSettings.from_run_config({"clients": 7, key: "/home/you/letters", **data})
    resuming.keep_settings(begun, tmp_path)
    assert resuming.kept_config(tmp_path)[key] == "/home/you/letters"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    with pytest.raises(AppError, match=rf"not begun by you on this machine, .* add --{key} with this or your own"):
        resumed_settings(tmp_path, (), {})
    assert resumed_settings(tmp_path, (), {key: "mine"}).to_run_config()[key] == "mine"
    inside = AppSettings.from_run_config({"clients": 7, "model": str(tmp_path / "model")})
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    resuming.keep_settings(inside, tmp_path)
    assert resumed_settings(tmp_path, (), {}).paths.model == tmp_path / "model"


def test_a_changed_setting_breaks_the_seal(tmp_path):
    resuming.keep_settings(AppSettings.from_run_config({"model": "m"}), tmp_path)
    path = tmp_path / "checkpoint" / "settings.json"
    kept = json.loads(path.read_text())
    del kept["sha256"]
    path.write_text(json.dumps({**kept, "model": "/elsewhere"}))
    with pytest.raises(AppError, match="add --model"):
        resuming.kept_config(tmp_path)


def test_a_runs_settings_cannot_choose_what_is_imported_or_where_clients_store(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    kept = {"sources": "torchvision,evil", "client-store": "/elsewhere", "model-store": "/elsewhere", "clients": 7}
    (tmp_path / "checkpoint" / "settings.json").write_text(json.dumps(kept))
    assert resuming.kept_config(tmp_path) == {"clients": 7}
    (tmp_path / "checkpoint" / "settings.json").write_text("[]")
    with pytest.raises(AppError, match="damaged"):
        resuming.kept_config(tmp_path)


def test_the_next_start_removes_what_a_killed_simulation_left_and_nothing_else(tmp_path):
    for name, content in (("dead", {"pid": 2**22 + 1, "since": 1.5}), ("unmarked", None), ("elsewhere", {"host": "x"})):
        (tmp_path / f"persephonee-{name}").mkdir()
        mark = {"format": 1, "host": socket.gethostname(), "pid": 2**22 + 1, "since": 1.5}
        if content is not None:
            (tmp_path / f"persephonee-{name}" / MARK_NAME).write_text(json.dumps({**mark, **content}))
    with scratch_folder(tmp_path) as living:
        remove_abandoned(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            "persephonee-unmarked",
            "persephonee-elsewhere",
            living.name,
        }


def test_a_checkpoint_is_private_and_a_flipped_bit_in_it_is_noticed(tmp_path):
    before = checkpoint.Checkpoint(round=1, arrays={"exits": np.ones(4, dtype=np.float32)})
    before.write(tmp_path)
    (path,) = (tmp_path / "checkpoint").iterdir()
    resuming.keep_settings(AppSettings(), tmp_path)
    assert (tmp_path / "checkpoint" / "settings.json").stat().st_mode & 0o777 == 0o600
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    assert checkpoint.Checkpoint.read(tmp_path, 1).secret == before.secret
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(AppError, match="damaged"):
        checkpoint.Checkpoint.read(tmp_path, 1)
