import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from persephonee.multi_exit.storage import load_network
from persephonee.server.training import remaining_time
from tests.commands.command_line import call, refused
from tests.tiny_cnn import SOURCE, user_images

ROOT = Path(__file__).resolve().parents[3]
CANNOT_IMPORT = """
import sys
for name in ("torch", "torchvision", "pandas", "pyarrow", "onnx", "flwr", "matplotlib"):
    sys.modules[name] = None
from persephonee.commands.application import main
main()
"""


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory):
    """Forty images of a user whom no model has seen, in a folder for each class; their order is that of the names."""
    folder = tmp_path_factory.mktemp("images")
    images, labels = user_images(77, 40)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:02d}.png")
    order = np.lexsort((np.arange(40), labels))
    return folder, images[order], labels[order]


@pytest.fixture
def model(pretrained):
    return ("--model", pretrained, "--sources", SOURCE)


@pytest.fixture(scope="module")
def logits(pretrained, class_folders):
    network, _ = load_network(pretrained, (SOURCE,))
    with torch.no_grad():
        return [one.numpy() for one in network(torch.from_numpy(class_folders[1]).unsqueeze(1) / 255)]


def evaluated(*words):
    done = call("evaluate", *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_long_work_on_images_says_how_long_it_takes(model, class_folders, monkeypatch):
    monkeypatch.setattr(remaining_time, "SECONDS_BEFORE_ESTIMATE", -1.0)
    monkeypatch.setattr(remaining_time, "LONG_SECONDS", -1.0)
    assert "answering: 40 of 40 images" in call("evaluate", *model, "--images", class_folders[0]).stderr
    assert "answering: 40 of 40 images" in call("predict", class_folders[0], *model).stderr


def test_an_image_that_does_not_fit_is_named_before_the_first_one_is_answered(model, class_folders, tmp_path):
    shutil.copytree(class_folders[0], tmp_path / "images")
    Image.new("L", (5, 5)).save(tmp_path / "images" / "1" / "zzz.png")
    for verb in (("evaluate", "--images", tmp_path / "images"), ("predict", tmp_path / "images")):
        assert "zzz.png is 5x5 px" in refused(*verb, *model)


def test_predict_tells_the_class_the_confidence_and_the_exit_of_each_file(model, class_folders, logits):
    folder, *_ = class_folders
    done = call("predict", folder, *model, "--format", "json", "--threshold", 1)
    rows = json.loads(done.stdout)
    assert [int(row["label"]) for row in rows] == logits[-1].argmax(axis=1).tolist()
    assert {row["exit"] for row in rows} == {len(logits) - 1}
    softmax = torch.softmax(torch.from_numpy(logits[-1]).double(), dim=1).amax(dim=1)
    assert [row["confidence"] for row in rows] == pytest.approx(softmax.tolist(), abs=1e-5)


def test_predict_prints_csv_that_names_the_files_as_they_are_called(model, class_folders, tmp_path):
    odd = tmp_path / "a, [red]b.png"
    odd.write_bytes(next(class_folders[0].rglob("*.png")).read_bytes())
    rows = list(csv.DictReader(io.StringIO(call("predict", odd, *model, "--format", "csv").stdout)))
    assert [row["file"] for row in rows] == [str(odd)]
    assert rows[0].keys() == {"file", "label", "confidence", "exit"}
    assert "[red]b" in "".join(call("predict", odd, *model).stdout.split("\n"))


def test_evaluate_counts_each_exit_and_the_cost_on_a_folder_of_classes(model, pretrained, class_folders, logits):
    folder, _, labels = class_folders
    found = evaluated(*model, "--images", folder, "--threshold", 1)
    right = [float((one.argmax(axis=1) == labels).mean()) for one in logits]
    assert [entry["accuracy"]["mean"] for entry in found["exits"]] == pytest.approx(right)
    assert found["accuracy"]["mean"] == pytest.approx(right[-1])
    assert [entry["exit_rate"] for entry in found["exits"]] == [0, 0, 1]
    costs = load_network(pretrained, (SOURCE,))[0].costs
    assert found["mean_macs"]["mean"] == costs.original_macs + sum(row.head_macs for row in costs.exit_costs)


def test_evaluate_of_a_store_counts_what_personalise_tested(with_model, newcomer, tmp_path):
    store = ("--store", tmp_path / "store")
    words = (*with_model, *store, "--min-samples", 20)
    report = json.loads(call("personalise", "--user", newcomer, *words, "--rule", "paper", "--json").stdout)
    found = evaluated(*words, "--seed", 5)
    assert found["users"] == [newcomer]
    assert found["num_samples"] == report["num_test"]
    assert found["accuracy"]["mean"] == pytest.approx(report["accuracy_after"])
    assert found["mean_macs"]["mean"] == pytest.approx(report["mean_macs"])


def test_evaluate_leaves_out_the_users_who_trained_the_model(with_model, pretrained, newcomer):
    trained_on = load_network(pretrained, (SOURCE,))[1].trained_on
    found = evaluated(*with_model)
    assert newcomer in found["users"]
    assert not set(found["users"]) & set(trained_on)
    assert f"trained on user {trained_on[0]}" in refused("evaluate", *with_model, "--user", trained_on[0])


@pytest.mark.slow
def test_an_exported_network_answers_as_the_store_that_it_came_from(with_model, newcomer, tmp_path, class_folders):
    pytest.importorskip("onnxruntime")
    store = ("--store", tmp_path / "store")
    assert call("personalise", "--user", newcomer, *with_model, *store, "--rule", "paper").exit_code == 0
    model = (*with_model[:2], *store, "--sources", SOURCE)
    assert call("export", *model, "--out", tmp_path / "onnx").exit_code == 0
    of_store = json.loads(call("predict", class_folders[0], *model, "--format", "json").stdout)
    of_onnx = json.loads(call("predict", class_folders[0], "--exported", tmp_path / "onnx", "--format", "json").stdout)
    assert [(row["label"], row["exit"]) for row in of_onnx] == [(row["label"], row["exit"]) for row in of_store]
    words = ["predict", class_folders[0], "--exported", tmp_path / "onnx", "--format", "json"]
    alone = subprocess.run(
        [sys.executable, "-c", CANNOT_IMPORT, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout) == of_onnx
    found = evaluated("--exported", tmp_path / "onnx", "--images", class_folders[0])
    assert found["accuracy"] == evaluated(*model, "--images", class_folders[0])["accuracy"]
    assert found["mean_macs"] is None


def test_what_does_not_go_together_ends_in_one_sentence(model, class_folders, tmp_path):
    folder, *_ = class_folders
    assert "either --model MODEL" in refused("predict", folder)
    assert "leave out --store" in refused("predict", folder, "--exported", "X", "--store", "S")
    assert "there is no nowhere" in refused("predict", "nowhere", *model)
    assert "--images is the data: leave out --user" in refused("evaluate", *model, "--images", folder, "--user", "x")
    (tmp_path / "cats").mkdir()
    (tmp_path / "dogs").mkdir()
    for name in ("cats", "dogs"):
        Image.new("L", (12, 12)).save(tmp_path / name / "1.png")
    assert "'cats' is none of the model's classes" in refused("evaluate", *model, "--images", tmp_path)
    Image.new("L", (9, 12)).save(tmp_path / "wide.png")
    assert "wide.png is 9x12 px, expected 12x12" in refused("predict", tmp_path / "wide.png", *model)
