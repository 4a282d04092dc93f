"""The parts of `make bench`: one that fails is named, and what is done is kept."""

import importlib.util
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest

from persephonee.benchmarks import benchmark_commands as benchmark_parts
from persephonee.benchmarks.benchmark_commands import DONE, FAILED, SKIPPED, Part, is_done, read_outcomes, run_part
from persephonee.benchmarks.result_tables import read_result, write_result
from persephonee.benchmarks.run_all import SCALES, parts
from persephonee.benchmarks.users import ROOT, data_name, data_options, run_command
from persephonee.data_partitions.settings import DataSettings

WORKS = Part(name="works", command=(sys.executable, "-c", "print('done')"))
FAILS = Part(name="fails", command=(sys.executable, "-c", f"raise ValueError('no {ROOT}/file')"))
LACKS = Part(name="lacks", missing="there are no weights")


def test_a_part_that_fails_is_named_with_its_reason_and_loses_no_other(tmp_path):
    outcomes = [run_part(part, tmp_path) for part in (FAILS, WORKS, LACKS)]
    assert [outcome.state for outcome in outcomes] == [FAILED, DONE, SKIPPED]
    assert [outcome.name for outcome in read_outcomes(tmp_path)] == ["fails", "works", "lacks"]
    # the page is no place for a path of this machine
    assert outcomes[0].reason == "ValueError: no ./file"
    assert outcomes[2].reason == "there are no weights"
    assert (tmp_path / "parts" / "works.txt").read_text() == "done\n"


def test_only_what_ran_to_its_end_is_done(tmp_path):
    for part in (FAILS, WORKS, LACKS):
        run_part(part, tmp_path)
    assert [is_done(part, tmp_path) for part in (FAILS, WORKS, LACKS)] == [False, True, False]


def test_a_part_that_hangs_is_ended_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_parts, "LONGEST_SECONDS", 4)
    child = "import time; time.sleep(60)"
    hangs = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', '{child}']); print(p.pid, flush=True)"
    part = Part(name="hangs", command=(sys.executable, "-c", f"{hangs}; p.wait()"))
    outcome = run_part(part, tmp_path)
    assert (outcome.state, outcome.reason) == (FAILED, "it took longer than 4 s")
    pid = int((tmp_path / "parts" / "hangs.txt").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("scale", SCALES)
def test_without_data_and_model_one_is_trained_and_the_photographs_are_left_out_by_name(scale, tmp_path):
    planned = {part.name: part for part in parts(scale, DataSettings(), tmp_path, None, None)}
    assert "--kind writers" in " ".join(planned["model-writers"].command)
    for name in ("mobilenet_v2", "resnet50"):
        assert "no photographs" in planned[f"personalisation-{name}-224"].missing
    assert planned["gpu"].command or "no GPU" in planned["gpu"].missing
    modules = {part.command[2] for part in planned.values() if part.command} - {"pip"}
    assert all(importlib.util.find_spec(module) for module in modules)


def test_with_data_and_model_they_are_used(tmp_path):
    planned = {part.name: part for part in parts("quick", DataSettings(), tmp_path, Path("/m/writers"), Path("/data"))}
    assert "model-writers" not in planned
    assert "--model /m/writers" in " ".join(planned["simulation"].command)
    command = planned["personalisation-resnet50-224"].command
    assert "/data/tiny-imagenet-200" in command
    assert command[command.index("--image-size") + 1] == "224"


def test_a_result_comes_back_and_an_unfinished_one_does_not_count(tmp_path):
    table = pd.DataFrame({"seconds": [1.0, 2.0]})
    write_result(tmp_path, "growth", {"threads": 1}, {"seconds": table})
    result = read_result(tmp_path, "growth")
    assert result is not None
    assert result.about == {"threads": 1}
    pd.testing.assert_frame_equal(result.tables["seconds"], table)
    (tmp_path / "growth" / "about.json").unlink()
    assert read_result(tmp_path, "growth") is None


def test_data_is_named_by_its_folder_and_travels_as_options(tmp_path):
    path = tmp_path / "qmnist-by-writer" / "train.parquet"
    settings = DataSettings(dataset="parquet", data_path=path, seed=3)
    assert data_name(settings) == "qmnist-by-writer"
    assert data_name(DataSettings()) == "synthetic-writers"
    options = data_options(settings.to_flat())
    assert options[options.index("--data-seed") + 1] == "3"
    assert options[options.index("--data-path") + 1] == str(path)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_everything_runs_at_smoke_scale_and_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSEPHONEE_REAL_DATA", str(tmp_path / "nothing"))
    page = tmp_path / "docs" / "performance.md"
    command = [sys.executable, "-m", "persephonee.benchmarks.run_all", "--scale", "smoke", "--num-writers", "40"]
    run_command([*command, "--out", str(tmp_path / "out"), "--page", str(page)])
    states = {outcome.name: outcome.state for outcome in read_outcomes(tmp_path / "out")}
    assert {name for name, state in states.items() if state == FAILED} == set()
    assert states["simulation"] == states["personalisation-28"] == DONE
    text = page.read_text()
    for heading in ("## Targets", "## Personalisation", "## Simulation", "## Growth", "## Inference", "## Memory"):
        assert heading in text
    assert "personalisation-resnet50-224: left out, there are no photographs" in text
    assert str(tmp_path) not in text
