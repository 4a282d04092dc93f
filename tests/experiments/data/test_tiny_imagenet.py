import io
import json
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.sources.image_sets import open_image_set
from persephonee.experiments.data import tiny_imagenet
from persephonee.experiments.studies.imagenet_networks import tiny_imagenet_classes
from tests.conftest import real_data

WNIDS = ("n02124075", "n01443537", "n07749582")
ROOT = "tiny-imagenet-200"


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, 0, 255 - shade)).save(buffer, format="jpeg")
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path):
    """Stanford's zip with 12 training images of each of three classes, and Keras' list of classes."""
    folder = tmp_path / "files"
    folder.mkdir()
    order = [2, 0, 1, 0, 2, 1]
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr(f"{ROOT}/wnids.txt", "\n".join(WNIDS) + "\n")
        for label, wnid in enumerate(WNIDS):
            archive.writestr(f"{ROOT}/train/{wnid}/{wnid}_boxes.txt", "")
            # as text, 10 comes before 2
            for number in sorted(range(12), key=str):
                archive.writestr(f"{ROOT}/train/{wnid}/images/{wnid}_{number}.JPEG", jpeg(40 * label + number))
        lines = [f"val_{i}.JPEG\t{WNIDS[label]}\t0\t0\t62\t62" for i, label in enumerate(order)]
        archive.writestr(f"{ROOT}/val/val_annotations.txt", "\n".join(lines) + "\n")
        for i in range(len(order)):
            archive.writestr(f"{ROOT}/val/images/val_{i}.JPEG", jpeg(200 + i))
        archive.writestr(f"{ROOT}/test/images/test_0.JPEG", jpeg(0))
    index = {"0": ["n01440764", "tench"], "1": [WNIDS[1], "goldfish"], "285": [WNIDS[0], "cat"], "951": [WNIDS[2], "x"]}
    (folder / "imagenet_class_index.json").write_text(json.dumps(index))
    return folder


def write(files, out, train=3, validation=1):
    tiny_imagenet.main(files=files, out=out, train_per_class=train, validation_per_class=validation, any_files=True)
    return [pq.read_table(out / f"{part}.parquet") for part in ("train", "validation")]


def test_the_first_images_of_each_class_are_taken_by_their_numbers_as_they_are(files, tmp_path, capsys):
    train, validation = write(files, tmp_path / "out")
    # sorted by class name, labels as wnids.txt counts
    assert train["label"].to_pylist() == [1, 1, 1, 0, 0, 0, 2, 2, 2]
    assert [cell["bytes"] for cell in train["image"].to_pylist()[:3]] == [jpeg(40), jpeg(41), jpeg(42)]
    assert validation["label"].to_pylist() == [2, 0, 1]
    assert [cell["bytes"] for cell in validation["image"].to_pylist()] == [jpeg(200), jpeg(201), jpeg(202)]
    assert "9 training and 3 validation images" in capsys.readouterr().out
    assert tiny_imagenet_classes(tmp_path / "out" / "classes.json") == (285, 1, 951)
    assert json.loads((tmp_path / "out" / "classes.json").read_text())["wnids"] == [*WNIDS]
    images = open_image_set(tmp_path / "out", label_column="label", image_column="image")
    assert images.class_names == WNIDS
    # a folder's files come in the order of their names
    assert images.labels.tolist() == [*train["label"].to_pylist(), *validation["label"].to_pylist()]


def test_a_zip_that_lacks_images_or_is_cut_off_leaves_nothing_behind(files, tmp_path):
    with pytest.raises(BrokenDataError, match="Class n01443537 has 12 training images, expected 13: fetch the zip"):
        write(files, tmp_path / "out", train=13)
    archive = files / "tiny-imagenet-200.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(BrokenDataError, match=r"is no whole zip \(.*\): fetch it again\."):
        write(files, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("text", ["[]", "{", '{"0": ["n01440764", "tench"]}', '{"x": ["n02124075", "cat"]}', "null"])
def test_a_list_of_classes_that_lacks_one_is_refused(files, tmp_path, text):
    (files / "imagenet_class_index.json").write_text(text)
    with pytest.raises(BrokenDataError, match=r"does not number the classes \(.*\): fetch it again\."):
        write(files, tmp_path / "out")


def test_a_validation_image_of_an_unknown_class_is_refused(files, tmp_path):
    with zipfile.ZipFile(files / "tiny-imagenet-200.zip") as archive:
        wnids = [*WNIDS[:2]]
        with pytest.raises(BrokenDataError, match=r"val_0.JPEG is of the class 'n07749582', which wnids.txt lacks"):
            list(tiny_imagenet.validation_rows(archive, wnids, 1))


def test_the_files_have_the_schema_of_our_copy(files, tmp_path):
    train, validation = write(files, tmp_path / "out")
    for part, ours in (("train", train), ("validation", validation)):
        theirs = pq.read_schema(real_data(f"tiny-imagenet-200/{part}.parquet"))
        assert ours.schema.equals(theirs)
        features = json.loads(theirs.metadata[b"huggingface"])["info"]["features"]
        assert json.loads(ours.schema.metadata[b"huggingface"])["info"]["features"] == {
            **features,
            "label": {**features["label"], "names": [*WNIDS]},
        }
    ours = json.loads((tmp_path / "out" / "classes.json").read_text())
    theirs = json.loads(real_data("tiny-imagenet-200/classes.json").read_text())
    assert ours.keys() == theirs.keys()
    assert theirs["wnids"] == features["label"]["names"]


def test_our_copy_is_ordered_as_the_script_orders():
    train = pq.read_table(real_data("tiny-imagenet-200/train.parquet"), columns=["label"])["label"].to_numpy()
    wnids = json.loads(real_data("tiny-imagenet-200/classes.json").read_text())["wnids"]
    assert train.tolist() == np.repeat([wnids.index(wnid) for wnid in sorted(wnids)], 200).tolist()
