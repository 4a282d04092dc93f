import errno
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.sources.parquet_users import ParquetUsers
from persephonee.multi_exit.storage import load_network
from persephonee.server.report import report_page
from persephonee.server.training import global_model
from persephonee.server.training.global_model_settings import UserFractions
from tests.commands.command_line import NETWORK, call, refused
from tests.tiny_cnn import SOURCE


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "expected a verb"),
        ("fly", "No such command 'fly'"),
        ("inspect --wings 2", "No such option '--wings'"),
        ("inspect", "either the folder of a model or --backbone"),
        ("inspect --backbone resnet5000", "resnet5000"),
        ("inspect --backbone vit_b_16 --input-size 224", "vit_b_16 has no places"),
        ("inspect --backbone mobilenet_v2 --num-exits 99", "num_exits=99"),
        ("inspect --backbone mobilenet_v2 --num-exits 0", "num_exits=0"),
        ("inspect --backbone mobilenet_v2 --num-classes 1", "num_classes=1"),
        ("inspect --backbone mobilenet_v2 --input-size 2", "input_size=2"),
        ("inspect --backbone mobilenet_v2 --in-channels 2", "in_channels=2"),
        (
            "inspect --backbone mobilenet_v2 --head deep",
            "head='deep' is unknown: use one of auto, msdnet, pooled, or package.module:function",
        ),
        ("inspect nowhere", "nowhere is no model folder"),
        ("report nowhere", "nowhere is no folder"),
        ("personalise --user 1 --store S", "Missing option '--model'"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6", "Missing option '--out'"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --epochs 0", "epochs=0"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --learning-rate -1", "learning_rate=-1"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --validation-fraction 1.5", "validation_fraction=1.5"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --personal-users 2.5", "personal_users=2.5"),
        (
            "pretrain --backbone mobilenet_v2 --num-exits 6 --out M --mean 1,x",
            "mean='1,x' is not known",
        ),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --dataset stars", "stars"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --dataset parquet", "needs --data-path"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --dataset parquet --data-path nowhere", "nowhere"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --num-writers 1", "two are needed"),
        ("simulate --device tpu", "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        ("simulate --gpu-fraction 2", "gpu_fraction=2.0 is out of range"),
        ("simulate --clients x", "'x' is not a valid integer"),
        ("simulate --clients 0", "--clients 0"),
        ("simulate --rounds 0", "rounds=0"),
        ("simulate --set round-deadline=0", "round-deadline=0.0 is no time; give seconds, above 0"),
        ("simulate --set node-wait=inf", "node-wait=inf is no time"),
        ("simulate --drop-tolerance 1.5", "drop_tolerance=1.5"),
        ("simulate --drop-tolerance nan", "drop_tolerance=nan"),
        ("simulate --set cost=joules", "cost=joules"),
        ("simulate --set test-fraction=-0.1", "test_fraction=-0.1"),
        ("simulate --labels most", "labels='most'"),
        ("simulate --labels 1.5", "labels='1.5'"),
        ("simulate --set alpha=1 --set gamma=1", "alpha=1.0 and gamma=1.0 exclude each other"),
        ("simulate --set scheme=guess", "scheme='guess'"),
        ("simulate --set scheme=supervised --labels none", "--labels none leaves no label"),
        ("simulate --set alpha=1 --labels 0", "--labels none leaves no label"),
        ("simulate --resume R --overwrite", "--resume DIR"),
        ("simulate --seed -1", "seed=-1"),
        ("inspect --backbone mobilenet_v2 --seed 18446744073709551616", "seed=18446744073709551616 is out of range"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --seed 9223372036854775808", "in [0, 2**63)"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --seed -1", "seed=-1"),
        ("personalise --model M --user 1 --store S --data-seed 9223372036854775808", "in [0, 2**63)"),
        ("simulate --set epoch=3", "epoch is no run-config key; did you mean epochs?"),
        ("simulate --set epochs", "--set epochs sets nothing; write it as KEY=VALUE"),
        ("simulate --set num-server-rounds=3", "it is called rounds now"),
        ("simulate --config nowhere.toml", "nowhere.toml"),
    ],
)
def test_bad_input_ends_in_one_sentence_that_names_it(tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    sentence = refused(*words.split()) if words else call().stderr
    assert named in sentence
    assert not list(tmp_path.iterdir())


def test_a_missing_column_a_label_out_of_range_and_a_broken_image_are_named(tmp_path, data_text):
    pretrain = ("pretrain", *NETWORK, *data_text, "--out", tmp_path / "M")
    assert "'author'" in refused(*pretrain, "--user-column", "author")
    assert "'kind'" in refused(*pretrain, "--label-column", "kind")
    table = pq.read_table(data_text[-1])
    wrong = tmp_path / "wrong.parquet"
    pretrain = ("pretrain", *NETWORK, "--dataset", "parquet", "--data-path", wrong, "--out", tmp_path / "M")
    pq.write_table(table.set_column(2, "character", pa.array([-1] * len(table))), wrong)
    assert "the label -1 in row 0" in refused(*pretrain)
    pq.write_table(table.set_column(0, "image", pa.array([b"no picture"] * len(table))), wrong)
    assert "image in row 0" in refused(*pretrain)
    wrong.write_bytes(data_text[-1].read_bytes()[:-50])
    assert "wrong.parquet" in refused(*pretrain)
    assert not (tmp_path / "M").exists()


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path, data_text, pretrained):
    pretrain = ("pretrain", *NETWORK, *data_text, "--epochs", 1)
    (tmp_path / "diary.txt").write_text("dear diary")
    assert "something other than a model" in refused(*pretrain, "--out", tmp_path)
    assert "is a file" in refused(*pretrain, "--out", tmp_path / "diary.txt")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in pretrained.iterdir())
    assert "holds a model already" in refused(*pretrain, "--out", pretrained)
    assert "holds a model already" in refused(*pretrain, "--out", pretrained, "--resume")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in pretrained.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_a_model_that_is_cut_off_is_named(tmp_path, pretrained):
    copy = shutil.copytree(pretrained, tmp_path / "M")
    weights = next(copy.glob("weights-*"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert weights.name in refused("inspect", copy, "--sources", SOURCE)
    (copy / "network.json").write_text('{"format": ')
    assert "network.json is damaged" in refused("inspect", copy, "--sources", SOURCE)


def test_a_network_of_ones_own_is_built_only_where_it_is_allowed(pretrained):
    assert f"allow '{SOURCE}'" in refused("inspect", pretrained)


def test_a_model_of_other_data_is_refused(tmp_path, with_model, pretrained, newcomer):
    other = ("--model", pretrained, "--sources", SOURCE, "--num-writers", 5)
    sentence = refused("personalise", *other, "--user", "s0w0000", "--store", tmp_path / "S")
    assert "2 classes" in sentence and "62" in sentence


def test_users_whom_the_model_knows_or_who_are_not_there_are_refused(tmp_path, with_model, pretrained, newcomer):
    known = load_network(pretrained, (SOURCE,))[1].trained_on[0]
    words = ("personalise", *with_model, "--store", tmp_path / "S")
    assert f"was trained on user {known}" in refused(*words, "--user", known)
    assert f"no user nobody: take another, such as {newcomer}" in refused(*words, "--user", "nobody")
    assert not (tmp_path / "S").exists()


def test_a_user_with_too_few_samples_is_named(tmp_path, with_model, newcomer):
    words = ("--user", newcomer, "--store", tmp_path / "S", "--min-samples", 41)
    assert f"User {newcomer} has 40 samples" in refused("personalise", *with_model, *words)


def test_a_loss_that_is_no_number_ends_in_a_sentence(tmp_path, data_text):
    pretrain = ("pretrain", *NETWORK, *data_text, "--out", tmp_path / "M", "--batch-size", 32)
    assert "The training loss became" in refused(*pretrain, "--learning-rate", "1e30")
    assert not (tmp_path / "M" / "network.json").exists()


@pytest.fixture
def read_only(monkeypatch):
    """Let every folder be one of a read-only disk."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/somewhere/.hidden.tmp")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)


def test_a_place_that_cannot_be_written_is_named_before_anything_long(tmp_path, read_only, pretrained):
    # nor is the data opened, which is not there
    data = ("--dataset", "parquet", "--data-path", "nowhere.parquet")
    out = tmp_path / "new"
    words = (f"{out}: Read-only file system.", f"{pretrained}: Read-only file system.")
    assert words[0] in refused("pretrain", *NETWORK, *data, "--out", out)
    from_model = ("--from", pretrained, "--meta", "reptile", *data, "--sources", SOURCE)
    assert words[0] in refused("pretrain", *from_model, "--out", out)
    assert words[1] in refused("calibrate", "--model", pretrained, *data, "--sources", SOURCE)


def test_a_broken_image_of_a_user_who_calibrates_is_named_before_the_training(tmp_path, monkeypatch, data_text):
    few = UserFractions(max_users=4)
    users = global_model.choose_training_users(tuple(f"u{number:02d}" for number in range(12)), few, 0)
    load = ParquetUsers.load_partition

    def broken(self, index):
        # of those who train and validate nothing is broken
        if all(self.client_ids[index] not in part for part in users):
            raise BrokenDataError(f"the image of {self.client_ids[index]} is broken.")
        return load(self, index)

    monkeypatch.setattr(ParquetUsers, "load_partition", broken)
    monkeypatch.setattr(global_model, "pretrain", lambda *rest: pytest.fail("it was trained"))
    words = ("pretrain", *NETWORK, *data_text, "--out", tmp_path / "M", "--max-users", 4)
    assert "is broken" in refused(*words)
    assert not (tmp_path / "M").exists()


def test_a_store_that_cannot_be_made_is_named_before_the_round(tmp_path, with_model, newcomer):
    (tmp_path / "file").write_text("mine")
    result = call("personalise", *with_model, "--user", newcomer, "--store", tmp_path / "file")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "a folder was expected, and this is a file" in result.stderr


def test_data_of_other_classes_is_refused_by_verbs_that_train(tmp_path, pretrained, data_text):
    other = ("--num-writers", 5, "--sources", SOURCE)
    for verb in (("calibrate", "--model"), ("pretrain", "--meta", "reptile", "--out", tmp_path / "M", "--from")):
        assert "The model knows 2 classes and synthetic-writers has 62" in refused(*verb, pretrained, *other)
    assert not (tmp_path / "M").exists()


def test_a_device_that_is_refused_leaves_nothing_in_its_store(tmp_path, with_model, newcomer):
    device = ("device", "run", *with_model, "--schedule", "fast", "--store", tmp_path / "S")
    assert "there is no folder nowhere to watch" in refused(*device, "--watch", "nowhere")
    assert not list(tmp_path.iterdir())


def raising(error: Exception):
    def report(**options):
        raise error

    return report


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ModuleNotFoundError("no", name="flwr.app"), 'pip install "persephonee[flower]"'),
        (ModuleNotFoundError("no", name="matplotlib"), 'pip install "persephonee[report]"'),
        (ModuleNotFoundError("no", name="numpy"), "pip install numpy"),
        (RuntimeError("operator torchvision::nms does not exist"), "torch and torchvision do not belong together"),
        (PermissionError(13, "Permission denied", "/somewhere"), "/somewhere: Permission denied."),
        (OSError(28, "No space left on device", "weights"), "weights: No space left on device."),
        (OSError(28, "No space left on device"), "No space left on device: make room"),
    ],
)
def test_what_the_machine_lacks_is_said_in_a_sentence(monkeypatch, error, named):
    monkeypatch.setattr(report_page, "draw_report", lambda run: raising(error)())
    assert named in refused("report", "somewhere")


def test_mistakes_of_the_program_show_their_traceback(monkeypatch):
    monkeypatch.setattr(report_page, "draw_report", lambda run: 1 / 0)
    result = call("report", "somewhere")
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_installed_command_says_the_same(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).parent / "persephonee", "report", "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ") and done.stderr.endswith("such as runs/NAME.\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "pretrain --backbone mobilenet_v2 --num-exits 6 --out M",
        "personalise --model M --user 1 --store S",
        "device run --model M --store S --user 1",
        "simulate",
    ],
)
def test_a_gpu_that_is_not_there_is_said_before_anything_is_read_or_made(tmp_path, monkeypatch, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert "device=cuda asks for a GPU" in refused(*words.split(), "--device", "cuda")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
