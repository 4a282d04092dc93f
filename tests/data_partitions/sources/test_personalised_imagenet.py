import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from persephonee.data_partitions.errors import BrokenDataError, DataSettingsError, LabelRangeError, MissingDataError
from persephonee.data_partitions.errors import NotEnoughUsersError as TooFew
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.data_partitions.sources.image_users import ImageUserSettings
from persephonee.data_partitions.sources.personalised_imagenet import PersonalisedImageNet, popularity
from persephonee.data_partitions.user_splits import split_samples
from tests.conftest import real_data

SIDE = 8


def picture(row: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(row).integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(row: int, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    buffer = io.BytesIO()
    picture(row, size).save(buffer, "PNG")
    return buffer.getvalue()


class Numbered:
    """An image set whose image number i is a flat colour that says i."""

    def __init__(self, classes: int = 20, per_class: int = 40) -> None:
        self.labels = np.repeat(np.arange(classes), per_class)
        self.class_names = tuple(f"c{label}" for label in range(classes))

    def cells(self, rows):
        return [np.full((SIDE, SIDE, 3), (row >> 8, row & 255, 0), dtype=np.uint8) for row in rows.tolist()]

    def folder_of(self, row):
        return None

    def describe_row(self, row):
        return f"image {row}"


def numbers_in(images: np.ndarray) -> set[int]:
    corner = images[:, :, 0, 0].astype(np.int64)
    return set((corner[:, 0] * 256 + corner[:, 1]).tolist())


SETTINGS = ImageUserSettings(num_users=6, samples_per_user=40, label_skew_width=2.0)


def test_no_image_is_in_both_pools_or_in_a_train_and_a_test_part():
    images = Numbered()
    personal, of_global = (PersonalisedImageNet(images, SETTINGS, pool) for pool in ("personal", "global"))
    tested, learnt = set(), set()
    for index in range(personal.num_partitions):
        samples = personal.load_partition(index)
        split = split_samples(samples, SplitSettings(), seed=0)
        parts = [numbers_in(samples.images[part]) for part in (split.train, split.calibration, split.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == personal.counts[index] == 40
        assert len(parts[2]) == 10
        learnt |= parts[0] | parts[1]
        tested |= parts[2]
    assert not learnt & tested
    shared = [numbers_in(of_global.load_partition(index).images) for index in range(of_global.num_partitions)]
    assert sum(map(len, shared)) == len(set.union(*shared)) == 400
    assert not set.union(*shared) & (learnt | tested)
    assert not set(of_global.client_ids) & set(personal.client_ids)


def test_a_sample_keeps_the_label_of_its_image():
    images = Numbered()
    samples = PersonalisedImageNet(images, SETTINGS).load_partition(2)
    corner = samples.images[:, :, 0, 0].astype(np.int64)
    assert np.array_equal(samples.labels, images.labels[corner[:, 0] * 256 + corner[:, 1]])


def test_popularity_is_a_gaussian_over_a_permutation():
    shares = popularity(101, 5.0, np.random.default_rng(0))
    ranked = np.sort(shares)[::-1]
    paths = np.abs(np.arange(101) - 50)
    assert ranked == pytest.approx(np.sort(np.exp(-0.5 * (paths / 5) ** 2))[::-1] / np.sqrt(2 * np.pi * 25), rel=1e-3)
    assert not np.array_equal(shares, popularity(101, 5.0, np.random.default_rng(1)))
    assert popularity(4, 0.01, np.random.default_rng(0)).max() == pytest.approx(0.5)


def test_the_width_decides_how_many_classes_a_user_sees():
    images = Numbered(classes=60, per_class=200)
    seen = [
        np.mean(PersonalisedImageNet(images, ImageUserSettings(num_users=9, label_skew_width=width)).classes_seen)
        for width in (1.0, 5.0, 500.0)
    ]
    assert seen[0] < 12 < seen[1] < 40 < seen[2] == 60


def test_a_user_is_the_same_however_many_there_are_and_another_with_another_seed():
    def rows(**changes):
        return PersonalisedImageNet(Numbered(), ImageUserSettings(**{**vars(SETTINGS), **changes}))._rows[1]

    assert np.array_equal(rows(), rows(num_users=2))
    assert not np.array_equal(rows(), rows(seed=1))


def test_a_narrow_taste_in_a_small_pool_is_flattened_or_refused():
    # of 40 images a class has 15 for a user to train with, so 75 of them need five classes
    assert (
        min(
            PersonalisedImageNet(Numbered(), ImageUserSettings(samples_per_user=100, label_skew_width=0.5)).classes_seen
        )
        > 4
    )
    with pytest.raises(TooFew, match=r"--samples-per-user 75 is too many: .* have \d+ images"):
        PersonalisedImageNet(Numbered(), ImageUserSettings(samples_per_user=100, label_skew_width=0.01))
    with pytest.raises(TooFew, match=r"--samples-per-user \d+ is too many: .* has 400 images.* 200 or less"):
        PersonalisedImageNet(Numbered(), ImageUserSettings(samples_per_user=300), "global")


def folders_of(path, size=(SIDE, SIDE)):
    for label, name in enumerate(("ant", "bee")):
        (path / name).mkdir()
        for row in range(40):
            (path / name / f"{row:02d}.png").write_bytes(encoded(100 * label + row, size))
    return path


SMALL = {"num_users": 2, "samples_per_user": 10, "label_skew_width": 1.0}


def test_class_folders_open_by_name_with_their_pixels(tmp_path):
    users = open_partitions(DataSettings(dataset="imagefolder", data_path=folders_of(tmp_path), **SMALL))
    assert (users.num_classes, users.class_names, users.image_shape) == (2, ("ant", "bee"), (3, SIDE, SIDE))
    samples, row = users.load_partition(1), int(users._rows[1][-1])
    expected = np.asarray(picture(row % 40 + 100 * (row // 40))).transpose(2, 0, 1)
    assert np.array_equal(samples.images[-1], expected)
    assert samples.labels[-1] == row // 40


def test_images_are_scaled_and_the_middle_is_cut_out(tmp_path):
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        for row in range(40):
            wide = np.zeros((10, 40, 3), dtype=np.uint8)
            wide[:, 15:25] = (200, 40 * label, row)
            Image.fromarray(wide).save(tmp_path / name / f"{row:02d}.png")
    users = open_partitions(DataSettings(dataset="imagefolder", data_path=tmp_path, image_size=20, **SMALL))
    images = users.load_partition(0).images
    assert images.shape == (10, 3, 20, 20)
    assert (images[:, 0, :, 2:-2] == 200).all()


def test_parquet_with_image_and_label_opens_by_name_for_users_and_for_pretraining(tmp_path):
    cells = [{"bytes": encoded(row), "path": None} for row in range(80)]
    pq.write_table(pa.table({"image": cells, "label": [row % 2 for row in range(80)]}), tmp_path / "d.parquet")
    settings = DataSettings(dataset="imagefolder", data_path=tmp_path, **SMALL)
    personal, of_global = open_partitions(settings), open_partitions(settings, for_pretraining=True)
    assert (personal.client_ids, of_global.client_ids) == (("u0000", "u0001"), ("g0000", "g0001", "g0002", "g0003"))
    assert not set(personal._rows[0]) & set(of_global._rows[0])
    assert personal.load_partition(0).fixed_test.sum() == 2
    assert of_global.load_partition(0).fixed_test is None
    with pytest.raises(MissingDataError, match="no column 'kind'"):
        open_partitions(DataSettings(dataset="imagefolder", data_path=tmp_path, label_column="kind"))


def test_a_hub_data_set_has_the_same_users_as_its_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    from persephonee.data_partitions.sources.image_sets import HubImages

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = {"image": [{"bytes": encoded(row), "path": None} for row in range(80)], "label": [0, 1] * 40}
    images = HubImages(datasets.Dataset.from_dict(rows, features=features), label_column="label", image_column="image")
    users = PersonalisedImageNet(images, ImageUserSettings(**SMALL))
    row = int(users._rows[0][3])
    assert users.class_names == ("x", "y")
    assert np.array_equal(users.load_partition(0).images[3], np.asarray(picture(row)).transpose(2, 0, 1))


def test_a_hub_data_set_may_call_its_classes_by_text():
    datasets = pytest.importorskip("datasets")
    from persephonee.data_partitions.sources.image_sets import HubImages

    def opened(labels: list) -> HubImages:
        rows = {"image": [[[0]]] * len(labels), "label": labels}
        return HubImages(datasets.Dataset.from_dict(rows), label_column="label", image_column="image")

    images = opened(["cat", "ant", "cat", "bee"])
    assert (images.labels.tolist(), images.class_names) == ([2, 0, 2, 1], ("ant", "bee", "cat"))
    for labels, words in (([0.5, 1.5], "expected integers or strings"), ([1, None], "empty labels")):
        with pytest.raises(BrokenDataError, match=words):
            opened(labels)


def test_what_is_missing_or_broken_is_said_in_one_sentence(tmp_path):
    def opened(**changes):
        return open_partitions(DataSettings(dataset="imagefolder", data_path=tmp_path, **{**SMALL, **changes}))

    with pytest.raises(DataSettingsError, match="needs either --data-path or --hub-name"):
        DataSettings(dataset="imagefolder")
    with pytest.raises(DataSettingsError, match="label_skew_width=0 is out of range"):
        opened(label_skew_width=0)
    with pytest.raises(MissingDataError, match="has 0 folders; expected one for each class"):
        opened()
    folders_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match="empty holds no image"):
        opened()
    (tmp_path / "empty").rmdir()
    for file in (tmp_path / "ant").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(BrokenDataError, match=r"ant.*\.png cannot be used"):
        opened().load_partition(0)
    pq.write_table(pa.table({"image": [[[0]]], "label": [-1]}), tmp_path / "d.parquet")
    with pytest.raises(LabelRangeError, match="reaches from -1"):
        opened()


def test_real_photographs_become_users():
    path = real_data("tiny-imagenet-200/validation.parquet")
    settings = DataSettings(dataset="imagefolder", data_path=path, num_users=3, samples_per_user=60, image_size=32)
    users = open_partitions(settings)
    assert (users.num_classes, users.image_shape) == (200, (3, 32, 32))
    assert all(15 < seen < 60 for seen in users.classes_seen)
    assert users.load_partition(2).images.std() > 30
