import os

import numpy as np
import pytest
from PIL import Image

from persephonee.data_partitions.errors import BrokenDataError, MissingDataError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.sources.image_sets import ClassFolders, open_image_set


def fill(folder, classes=("cat", "dog", "owl"), count=4):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((8, 8), 60).save(folder / name / f"{number}.png")
    return folder


def test_what_systems_leave_beside_images_is_neither_image_nor_class(tmp_path, caplog):
    fill(tmp_path)
    for odd in (".ipynb_checkpoints", "@eaDir", "deep/.thumbnails"):
        (tmp_path / "cat" / odd).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "cat" / odd / "0-copy.png")
    (tmp_path / "cat" / "._0.png").write_bytes(b"\0\5\26\7")
    for folder in ("__MACOSX", ".git", "$RECYCLE.BIN", "lost+found"):
        fill(tmp_path / folder, ("cat",))
    images = ClassFolders(tmp_path)
    assert images.class_names == ("cat", "dog", "owl")
    assert np.bincount(images.labels).tolist() == [4, 4, 4]
    assert "4 hidden files are left out" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        *(("train", "val"), ("Train", "Valid", "Test"), ("training", "testing"), ("train",), ("seg_train", "seg_test")),
        *(("train2017", "val2017"), ("Training Data", "Test Data"), ("train", "unlabeled")),
    ],
)
def test_splits_are_no_classes_and_the_sentence_says_what_to_give(tmp_path, names):
    for name in names:
        fill(tmp_path / name)
    (tmp_path / "devkit").mkdir() if len(names) > 1 else None
    with pytest.raises(MissingDataError, match=rf"holds the splits .* give one of them, --data-path .*/{names[0]}:"):
        open_image_set(tmp_path, label_column="label", image_column="image")
    assert len(ClassFolders(tmp_path / names[0]).class_names) == 3


def test_an_image_has_any_ending_of_its_format_and_other_files_are_counted(tmp_path, caplog):
    fill(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "cat" / "from_a_browser.jfif", "JPEG")
    (tmp_path / "owl" / "from_a_phone.HEIC").write_bytes(b"ftypheic")
    assert np.bincount(ClassFolders(tmp_path).labels).tolist() == [5, 4, 4]
    assert "1 files are no images by their names, such as from_a_phone.HEIC" in caplog.text


def test_a_folder_within_a_folder_is_named(tmp_path):
    fill(tmp_path / "archive")
    with pytest.raises(MissingDataError, match=r"has 1 folders; expected .* such as those in .*archive"):
        ClassFolders(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    assert ClassFolders(fill(tmp_path, ("bus", "train", "tram"))).class_names == ("bus", "train", "tram")


def test_a_pipe_among_the_images_is_refused_at_once(tmp_path):
    fill(tmp_path)
    os.mkfifo(tmp_path / "owl" / "live.png")
    with pytest.raises(BrokenDataError, match=r"live\.png is no regular file but a pipe"):
        ClassFolders(tmp_path)


def test_a_file_that_goes_before_it_is_read_is_told_in_a_sentence(tmp_path):
    fill(tmp_path, count=40)
    settings = DataSettings(dataset="imagefolder", data_path=tmp_path, samples_per_user=8, label_skew_width=3.0)
    users = open_partitions(settings)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(BrokenDataError, match=r"The image .*\.png cannot be read"):
        users.load_partition(0)
