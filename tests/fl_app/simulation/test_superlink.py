import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import httpx
import psutil
import pytest

from persephonee.fl_app.errors import RunFailedError
from persephonee.fl_app.simulation import superlink
from persephonee.fl_app.simulation.scratch import scratch_folder
from persephonee.fl_app.simulation.surroundings import environment_of_flower


def test_nothing_of_another_flower_or_ray_reaches_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("FLWR_HOME", "/home/of/another")
    monkeypatch.setenv("PYTHONPATH", "backbones:/absolute")
    monkeypatch.chdir(tmp_path)
    environment = environment_of_flower(tmp_path / "home", tmp_path / "ray")
    assert "RAY_ADDRESS" not in environment
    assert environment["FLWR_HOME"] == str(tmp_path / "home")
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["PYTHONPATH"] == f"{tmp_path / 'backbones'}:/absolute"


@pytest.mark.parametrize("known", [{}, {"NO_PROXY": "intranet"}, {"no_proxy": "intranet, ::1", "NO_PROXY": "old"}])
def test_loopback_goes_through_no_proxy_in_the_children(tmp_path, monkeypatch, known):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**known, "http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5h://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    environment = environment_of_flower(tmp_path / "home", tmp_path / "ray")
    # as Flower's own client and Python's would decide
    monkeypatch.setattr(os, "environ", dict(environment))
    for host in ("localhost", "127.0.0.1", "::1"):
        assert urllib.request.proxy_bypass_environment(host)
    assert bool(urllib.request.proxy_bypass_environment("intranet")) == bool(known)
    assert not urllib.request.proxy_bypass_environment("example.org")
    httpx.Client(base_url="http://127.0.0.1:1").close()
    # data of a hub still comes through the proxy
    assert environment["http_proxy"] == "http://127.0.0.1:9"


def test_a_superlink_is_asked_for_its_health_past_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    program = tmp_path / "healthy"
    program.write_text(f"#!/bin/sh\ntouch health; exec {sys.executable} -m http.server --bind 127.0.0.1 $8\n")
    program.chmod(0o755)
    monkeypatch.setattr(superlink, "program", lambda name: str(program))
    with scratch_folder() as folder, superlink.SuperLink(folder, tmp_path / "log.txt") as link:
        assert link.is_running


def test_scratch_paths_are_short_enough_for_the_sockets_of_ray(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with scratch_folder() as folder:
        assert folder.is_dir()
        session = "/ray/session_2026-11-21_04-15-08_425492_4194304/sockets/plasma_store"
        assert len(str(folder) + session) <= 107
    assert not folder.exists()


def test_a_superlink_that_does_not_start_is_an_error_that_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(superlink, "program", lambda name: "false")
    with (
        pytest.raises(RunFailedError, match=r"did not start; its log is .*log\.txt"),
        scratch_folder() as folder,
        superlink.SuperLink(folder, tmp_path / "log.txt") as link,
    ):
        link.start_run(tmp_path, 1)


def test_everything_that_works_in_its_folder_ends_with_it(tmp_path, monkeypatch):
    # a stand-in that, like Ray's agents, leaves its parent and does not listen to SIGTERM
    program = tmp_path / "stubborn"
    program.write_text("#!/bin/sh\ntrap '' TERM\n(trap '' TERM; sleep 300) &\nsleep 300\n")
    program.chmod(0o755)
    monkeypatch.setattr(superlink, "program", lambda name: str(program))
    monkeypatch.setattr(superlink.SuperLink, "_wait_until_healthy", lambda self: None)
    monkeypatch.setattr(superlink, "ENDING_SECONDS", 0.5)
    with scratch_folder() as folder:
        with superlink.SuperLink(folder, tmp_path / "log.txt") as link:
            assert link.is_running
            started = link._everything()
            assert started
        assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in started)
        assert Path(folder).exists()


@pytest.mark.parametrize(("gpu_fraction", "words"), [(0.0, ""), (0.25, " client-resources-num-gpus=0.25")])
def test_clients_are_given_their_fraction_of_a_gpu_where_they_compute_on_one(
    tmp_path, monkeypatch, gpu_fraction, words
):
    asked = []
    link = superlink.SuperLink(tmp_path, tmp_path / "log.txt")
    monkeypatch.setattr(link, "_wait_until_healthy", lambda: None)
    monkeypatch.setattr(link, "_flwr", lambda *arguments: asked.append(arguments) or {"run-id": "1"})
    assert link.start_run(tmp_path, 3, gpu_fraction) == "1"
    assert asked[0][-1] == f"num-supernodes=3 client-resources-num-cpus=1{words}"


def test_nobody_waits_for_a_process_that_has_ended_and_that_its_parent_takes_no_note_of():
    parent = subprocess.Popen(["sh", "-c", "sleep 0 & exec sleep 60"])
    try:
        end = time.monotonic() + 10
        while not (ended := psutil.Process(parent.pid).children()) or ended[0].status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end
            time.sleep(0.02)
        begin = time.monotonic()
        assert superlink._end(set(ended), psutil.Process.kill, 5.0) == []
        assert time.monotonic() - begin < 4
    finally:
        parent.kill()
        parent.wait()
