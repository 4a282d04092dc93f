import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from persephonee.commands.application import app
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.commands.command_line import refused
from tests.conftest import REPOSITORY
from tests.tiny_cnn import NAME, SIDE, SOURCE, user_images, write_parquet

EAGER = ("--min-new-samples", 12, "--min-calibration", 2, "--epochs", 1)
WITHOUT_SERVER = (
    "import sys\n"
    "for name in ('flwr', 'ray', 'matplotlib', 'jinja2'): sys.modules[name] = None\n"
    "import tests.tiny_cnn\n"
    "from persephonee.commands.application import main\n"
    "main()"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "M"
    network = build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
    save_network(network, folder, ModelMetadata(class_names=("upright", "level")))
    return folder


@pytest.fixture
def with_model(model) -> tuple[object, ...]:
    return ("--model", model, "--sources", SOURCE)


@pytest.fixture
def replay(tmp_path, with_model) -> tuple[object, ...]:
    path = write_parquet(tmp_path / "data.parquet", users=2, samples=60)
    data = ("--dataset", "parquet", "--data-path", path, "--user", "u01")
    return (*with_model, *data, "--store", tmp_path / "S", "--every", 60, *EAGER)


def call(*words: object):
    return CliRunner().invoke(app, ["device", *map(str, words)])


def lines(*words: object) -> list[dict]:
    result = call("run", *words, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_replay_answers_every_sample_and_personalises_by_night_on_its_own(replay, tmp_path):
    # an untrained model has no curves of other users, without which only the paper's rule lets an exit answer
    said = lines(*replay, "--rule", "paper")
    predictions = [line for line in said if line["type"] == "answer"]
    events = [line for line in said if line["type"] == "event"]
    assert len(predictions) == 60
    assert set(predictions[0]) == {
        *("type", "time", "key", "label", "class", "confidence", "exit", "latency_ms", "explored", "stored")
    }
    assert {line["class"] for line in predictions} <= {"upright", "level"}
    done = next(event for event in events if event["kind"] == "round done")
    # the simulated phone is plugged in at 23 h and full enough at 1 h
    assert "T01:00" in done["time"]
    assert events[-1]["reason"] == "there are no more frames"
    status = json.loads(call("status", "--store", tmp_path / "S", "--json").stdout)
    assert status["frames"] == sum(status["samples_by_exit"]) == 60
    assert status["round"] == status["rounds"] == sum(event["kind"] == "round done" for event in events)
    assert set(status["stored"]) == {"calibration", "train"}
    assert not status["running"]
    assert 0 <= status["macs_saved"] < 1


def test_a_second_run_goes_on_from_the_first(replay):
    assert sum(line["type"] == "answer" for line in lines(*replay)) == 60
    again = lines(*replay)
    assert sum(line["type"] == "answer" for line in again) == 0
    assert again[0]["kind"] == "started"


def test_the_status_of_a_device_is_a_page_for_people(replay, tmp_path):
    text = call("run", *replay, "--quiet").stdout
    assert "* round done: round 1 learned from" in text
    assert "%  exit" not in text
    shown = call("status", "--store", tmp_path / "S").stdout
    assert "The device of u01 is not running; phase: inference" in shown
    assert "Samples by the exit that answered" in shown
    assert "Last events" in shown


def test_power_always_asks_for_nothing_not_even_the_hour(replay):
    # a sample a minute from 8 h on: an hour by day, in which rounds of others wait for the night
    said = lines(*replay, "--every", 1, "--power", "always")
    first = next(line for line in said if line.get("kind") == "round done")
    assert "T08:" in first["time"]


def test_labels_are_told_as_far_as_they_are_wished(replay, tmp_path):
    lines(*replay, "--labels", "none")
    assert json.loads(call("status", "--store", tmp_path / "S", "--json").stdout)["labelled"] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--power", "moon"), "--power moon is not known"),
        (("--hours", "night"), "--hours night is not known"),
        (("--drift", "feeling"), "'feeling' is not one of 'adwin', 'page-hinkley', 'plain'"),
        (("--p-expl", 2), "p_expl=2.0 is out of range"),
        (("--every", "nan"), "a sample every nan minutes does not do"),
        (("--every", "inf"), "a sample every inf minutes does not do"),
        (("--every", "1e12"), "a sample every 1e+12 minutes does not do"),
        (("--speed", "nan"), "speed=nan is out of range"),
        (("--p-expl", "nan"), "p_expl=nan is out of range"),
        (("--threshold", "inf"), "initial_threshold=inf is out of range"),
        (("--max-load", "nan"), "max_load=nan is out of range"),
        (("--max-age-days", "nan"), "max_age_days=nan is out of range"),
        (("--hours", "nan-6"), "from_hour=nan is out of range"),
        (("--drop-tolerance", "nan"), "drop_tolerance=nan is out of range"),
        (("--max-bytes", 10**26), "is out of range: expected 1 to 2**63 - 1"),
        (("--user", "nobody"), "parquet has no user 'nobody'"),
    ],
)
def test_bad_input_is_one_sentence(replay, words, sentence):
    assert sentence in refused("device", "run", *replay, *words)


def test_a_status_without_a_store_and_a_watch_without_a_folder_are_refused(tmp_path, with_model):
    assert "holds no device's store" in refused("device", "status", "--store", tmp_path / "nothing")
    words = ("device", "run", *with_model, "--store", tmp_path / "S", "--watch", tmp_path / "nowhere")
    assert "there is no folder" in refused(*words)


def test_a_store_of_another_user_is_refused(replay):
    lines(*replay)
    assert "was made with user u01, not u00" in refused("device", "run", *replay, "--user", "u00")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_watched_folder_is_answered_without_flower_and_ray_and_a_signal_stops_it_cleanly(
    tmp_path, with_model, number
):
    folder = tmp_path / "frames"
    folder.mkdir()
    images, _ = user_images(1, 6)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    Image.new("L", (99, 99)).save(folder / "large.png")
    (folder / "broken.png").write_text("no image")
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    words = ["device", "run", *with_model, "--watch", folder, "--store", tmp_path / "S", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_SERVER, *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    said = []
    try:
        while sum(line.get("kind") == "frame skipped" or line["type"] == "answer" for line in said) < 8:
            said.append(json.loads(process.stdout.readline()))
        # a frame that comes while the device runs
        Image.fromarray(images[0]).save(folder / ".late.tmp", format="png")
        (folder / ".late.tmp").rename(folder / "late.png")
        said.append(json.loads(process.stdout.readline()))
        time.sleep(0.2)
        process.send_signal(number)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.stdout.close()
    assert process.returncode == 0
    assert {line["key"] for line in said if line["type"] == "answer"} == {*(f"{i}.png" for i in range(6)), "late.png"}
    skipped = {line["details"]["key"]: line["reason"] for line in said if line.get("kind") == "frame skipped"}
    assert skipped["large.png"] == "large.png is 99x99 px, expected 12x12: crop and scale it first."
    assert "no image that can be read" in skipped["broken.png"]
    stopped = json.loads(rest.splitlines()[-1])
    assert (stopped["kind"], stopped["reason"]) == ("stopped", f"{number.name} came between two frames")
    # its images are nobody else's to see
    assert (tmp_path / "S").stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "S").iterdir() if path.is_file()} == {
        "device.sqlite": 0o600,
        "lock": 0o600,
    }
