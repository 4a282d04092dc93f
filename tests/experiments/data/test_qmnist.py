import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from persephonee.data_partitions.errors import BrokenDataError, DataError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.experiments.data import qmnist
from tests.conftest import real_data
from tests.experiments.data.idx_files import write_idx

TRAIN_DIGITS = 51_733
"""Rows of our copy that come from MNIST's training files; the next are test digits, which begin 7, 2, 1, 0."""


def labels_of(classes, series, writers) -> np.ndarray:
    labels = np.zeros((len(classes), 8), dtype=np.int32)
    labels[:, 0], labels[:, 1], labels[:, 2] = classes, series, writers
    return labels


def publish(folder, train, test, lost_test_labels=5):
    """Write MNIST's and QMNIST's four files; QMNIST has labels of more test images than MNIST has."""
    folder.mkdir()
    lost = np.full((lost_test_labels, 8), 9, dtype=np.int32)
    labels = (train[1], np.concatenate([test[1], lost]))
    for (images_name, labels_name), (images, _), known in zip(qmnist.PARTS, (train, test), labels, strict=True):
        write_idx(folder / images_name, images)
        write_idx(folder / labels_name, known)
    return folder


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 28, 28), dtype=np.uint8)
    train = (images[:5], labels_of([5, 0, 4, 1, 9], [4, 0, 4, 0, 4], [2154, 0, 2232, 1, 2102]))
    test = (images[5:], labels_of([7, 2, 1], [4, 4, 0], [2351, 2351, 327]))
    return publish(tmp_path / "files", train, test)


def images_in(table):
    return [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["image"].to_pylist()]


def test_publishers_files_are_known_by_name_address_and_checksum():
    files = qmnist.publisher_files()
    assert [*files] == [name for part in qmnist.PARTS for name in part]
    assert all(len(file.checksum) == len("md5:") + 32 and file.url.startswith("https://") for file in files.values())


def test_digits_become_rows_of_the_hub_s_femnist_format_on_white_paper(files, tmp_path, capsys):
    qmnist.main(files=files, out=tmp_path / "out", any_files=True, all_writers=True)
    table = pq.read_table(tmp_path / "out" / "train.parquet")
    assert table["character"].to_pylist() == [5, 0, 4, 1, 9, 7, 2, 1]
    assert table["hsf_id"].to_pylist() == [4, 0, 4, 0, 4, 4, 4, 0]
    assert table["writer_id"].to_pylist()[:2] == ["hsf4_w2154", "hsf0_w0000"]
    paper = 255 - np.concatenate([qmnist.read_idx(files / name) for name, _ in qmnist.PARTS])
    assert (np.stack(images_in(table)) == paper).all()
    assert "8 digits of 7 writers; docs/results.md was measured on 60,841 of 736" in capsys.readouterr().out
    users = open_partitions(DataSettings(dataset="parquet", data_path=tmp_path / "out"))
    assert users.class_names == tuple("0123456789")
    assert users.load_partition(users.client_ids.index("hsf4_w2351")).domain == "hsf_id=4"


def test_writers_on_whom_the_pages_were_not_measured_are_left_out_by_default(files, tmp_path):
    qmnist.main(files=files, out=tmp_path / "out", any_files=True)
    writers = pq.read_table(tmp_path / "out" / "train.parquet")["writer_id"].to_pylist()
    assert writers == ["hsf4_w2154", "hsf0_w0000", "hsf4_w2232", "hsf4_w2351", "hsf4_w2351", "hsf0_w0327"]


def test_files_that_are_not_the_published_ones_and_a_full_folder_are_refused(files, tmp_path):
    with pytest.raises(BrokenDataError, match=r"has the md5 .*, and torchvision states f68b3c2d"):
        qmnist.main(files=files, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="is not empty: name another folder"):
        qmnist.main(files=files, out=files, any_files=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\0\0\x09" + data[3:],
        lambda data: b"PK" + data[2:],
        lambda data: data[:6],
        lambda data: b"",
    ],
)
def test_an_idx_file_that_is_none_or_cut_off_is_refused_in_a_sentence(tmp_path, damage):
    path = write_idx(tmp_path / "plain-idx3-ubyte", np.zeros((2, 3, 3), dtype=np.uint8))
    assert qmnist.read_idx(path).shape == (2, 3, 3)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BrokenDataError, match=r"cannot be read \(.*\): fetch it again\."):
        qmnist.read_idx(path)
    packed = tmp_path / "packed.gz"
    packed.write_bytes(b"no gzip")
    with pytest.raises(BrokenDataError, match="cannot be read"):
        qmnist.read_idx(packed)


def test_labels_that_do_not_fit_the_images_are_refused():
    images = np.zeros((3, 28, 28), dtype=np.uint8)
    for labels in (np.zeros((2, 8), dtype=np.int32), np.zeros((3, 7), dtype=np.int32)):
        with pytest.raises(BrokenDataError, match=r"Expected images \[N, H, W\] and labels"):
            list(qmnist.rows_of(images, labels, every_writer=True))


@pytest.mark.parametrize("step", [120, pytest.param(1, marks=pytest.mark.slow)], ids=["some rows", "every row"])
def test_publishers_files_made_of_our_copy_give_our_copy_again(tmp_path, step):
    ours = pq.read_table(real_data("qmnist-by-writer/train.parquet"))
    rows = np.arange(0, len(ours), step)
    part, train = ours.take(rows), int((rows < TRAIN_DIGITS).sum())
    ids = [writer.removeprefix("hsf").split("_w") for writer in part["writer_id"].to_pylist()]
    labels = labels_of(part["character"].to_pylist(), *np.array(ids, dtype=np.int64).T)
    images = np.stack([255 - pixels for pixels in images_in(part)])
    published = publish(tmp_path / "files", (images[:train], labels[:train]), (images[train:], labels[train:]))
    qmnist.main(files=published, out=tmp_path / "out", any_files=True)
    again = pq.read_table(tmp_path / "out" / "train.parquet")
    assert again.schema.equals(ours.schema)
    assert json.loads(again.schema.metadata[b"huggingface"]) == json.loads(ours.schema.metadata[b"huggingface"])
    assert again.drop(["image"]).equals(part.drop(["image"]))
    assert (np.stack(images_in(again)) == np.stack(images_in(part))).all()


def test_our_copy_has_the_writers_that_the_script_keeps():
    writers = pq.read_table(real_data("qmnist-by-writer/train.parquet"), columns=["writer_id"])["writer_id"].to_pylist()
    assert (len(writers), len(set(writers))) == qmnist.MEASURED
    assert not {int(writer.rpartition("w")[2]) for writer in writers} & qmnist.NOT_MEASURED


def test_our_copy_begins_as_mnist_s_training_files_and_goes_on_as_its_test_files():
    digits = pq.read_table(real_data("qmnist-by-writer/train.parquet"), columns=["character"])["character"].to_pylist()
    assert digits[:4] == [5, 0, 4, 1]
    assert digits[TRAIN_DIGITS : TRAIN_DIGITS + 4] == [7, 2, 1, 0]
