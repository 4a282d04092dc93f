import io
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.experiments.data import emnist

scipy_io = pytest.importorskip("scipy.io")

UPRIGHT = np.zeros((28, 28), dtype=np.uint8)
UPRIGHT[4:24, 13:15] = 200
"""A one: its bar goes down, in the fifth row and beyond."""


def part_of(labels, writers) -> dict:
    images = np.stack([UPRIGHT.ravel(order="F")] * len(labels))
    # as in NIST's file: columns of doubles
    return {"images": images, "labels": np.array([labels]).T * 1.0, "writers": np.array([writers]).T * 1.0}


def publish(folder, train, test):
    folder.mkdir(exist_ok=True)
    matlab = io.BytesIO()
    dataset = {"train": train, "test": test, "mapping": np.arange(62)}
    scipy_io.savemat(matlab, {"dataset": dataset}, do_compression=True)
    with zipfile.ZipFile(folder / "matlab.zip", "w") as archive:
        archive.writestr("matlab/emnist-byclass.mat", matlab.getvalue())
    return folder


def test_characters_become_rows_with_their_writers_upright_and_on_white_paper(tmp_path, capsys):
    files = publish(tmp_path / "files", part_of([1, 10, 61], [7, 7, 3599]), part_of([35], [7]))
    emnist.main(files=files, out=tmp_path / "out", any_files=True)
    table = pq.read_table(tmp_path / "out" / "train.parquet")
    assert table["writer_id"].to_pylist() == ["w0007", "w0007", "w3599", "w0007"]
    users = open_partitions(DataSettings(dataset="parquet", data_path=tmp_path / "out"))
    assert users.client_ids == ("w0007", "w3599")
    assert [users.class_names[label] for label in table["character"].to_pylist()] == ["1", "A", "z", "Z"]
    first = np.asarray(Image.open(io.BytesIO(table["image"].to_pylist()[0]["bytes"])))
    assert (first == 255 - UPRIGHT).all()
    assert "4 characters of 2 writers; EMNIST was published with 814,255" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([[1.0], [62.0]])}, r"The labels reach from 1 to 62, expected \[0, 62\)"),
        ({"writers": np.array([[1.0]])}, "2 labels and 1 writers"),
        ({"images": np.zeros((2, 783), dtype=np.uint8)}, r"got uint8 \[2, 783\]"),
        ({"images": np.zeros((2, 784))}, r"got float64 \[2, 784\]"),
    ],
)
def test_arrays_of_other_shapes_or_labels_are_refused_and_leave_nothing(tmp_path, change, message):
    files = publish(tmp_path / "files", {**part_of([1, 2], [1, 1]), **change}, part_of([1, 2], [1, 1]))
    with pytest.raises(BrokenDataError, match=message):
        emnist.main(files=files, out=tmp_path / "out", any_files=True)
    assert not (tmp_path / "out").exists()


def test_what_is_no_archive_and_no_matlab_file_is_refused(tmp_path):
    archive = tmp_path / "matlab.zip"
    archive.write_bytes(b"no zip")
    with pytest.raises(BrokenDataError, match=r"is no whole zip with matlab/emnist-byclass\.mat"):
        emnist.main(files=tmp_path, out=tmp_path / "out", any_files=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("matlab/emnist-byclass.mat", b"MATLAB 5.0" * 20)
    with pytest.raises(BrokenDataError, match="MATLAB file cannot be read"):
        emnist.main(files=tmp_path, out=tmp_path / "out", any_files=True)
