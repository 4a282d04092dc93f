import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from persephonee.data_partitions.errors import DataSettingsError, MissingDataError, NotEnoughUsersError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.fl_app.errors import ModelFitError
from persephonee.fl_app.wire.model_fit import check_division
from persephonee.multi_exit.storage import ModelMetadata
from persephonee.server.training.global_model import division_of

pytest.importorskip("flwr_datasets")

CLASSES, EACH = 4, 30


@pytest.fixture
def folder(tmp_path):
    """Class folders whose images tell their own number: red is the class, green the number within it."""
    for label in range(CLASSES):
        (tmp_path / f"class{label}").mkdir()
        for number in range(EACH):
            Image.new("RGB", (8, 8), (label, number, 0)).save(tmp_path / f"class{label}" / f"{number:02d}.png")
    return tmp_path


def opened(folder, **settings):
    return open_partitions(DataSettings(dataset="imagefolder", data_path=folder, **settings))


def images_of(partitions, index):
    """Return (class, number) of each image, and check that the label is the class."""
    samples = partitions.load_partition(index)
    found = [(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in samples.images]
    assert [label for label, _ in found] == samples.labels.tolist()
    assert len(samples) == partitions.counts[index]
    return found


@pytest.mark.parametrize(
    "settings", [{"partitioner": "dirichlet"}, {"partitioner": "shards", "shards_per_user": 2}], ids=str
)
def test_each_image_belongs_to_one_user_and_the_same_settings_divide_alike(folder, settings):
    users = opened(folder, num_users=6, **settings)
    found = [images_of(users, index) for index in range(users.num_partitions)]
    assert sorted(itertools.chain(*found)) == [(label, number) for label in range(CLASSES) for number in range(EACH)]
    again = opened(folder, num_users=6, **settings)
    assert [images_of(again, index) for index in range(again.num_partitions)] == found
    other = opened(folder, num_users=6, seed=1, **settings)
    assert [images_of(other, index) for index in range(other.num_partitions)] != found


def test_users_are_those_of_flowers_own_partitioner(folder):
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    flower = DirichletPartitioner(num_partitions=5, partition_by="label", alpha=0.3, min_partition_size=0, seed=3)
    labels = np.repeat(np.arange(CLASSES), EACH)
    flower.dataset = Dataset.from_dict({"label": labels, "number": np.tile(np.arange(EACH), CLASSES)})
    users = opened(folder, partitioner="dirichlet", num_users=5, dirichlet_alpha=0.3, seed=3)
    assert users.client_ids == tuple(f"p000{user}" for user in range(5))
    for user in range(5):
        part = flower.load_partition(user)
        assert images_of(users, user) == sorted(zip(part["label"], part["number"], strict=True))


def test_a_user_of_two_shards_has_two_classes_at_most_where_shards_fill_classes(folder):
    users = opened(folder, partitioner="shards", num_users=4, shards_per_user=2)  # 8 shards of 15, two a class
    classes = [{label for label, _ in images_of(users, index)} for index in range(4)]
    assert users.counts == (30, 30, 30, 30)
    assert all(len(found) <= 2 for found in classes)


def test_a_small_alpha_gives_users_fewer_classes_than_a_large_one(folder):
    def classes(alpha):
        users = opened(folder, partitioner="dirichlet", num_users=4, dirichlet_alpha=alpha)
        return np.mean([len({label for label, _ in images_of(users, index)}) for index in range(users.num_partitions)])

    assert classes(0.05) < 3 < classes(100.0)


def test_a_column_names_the_users_of_parquet(tmp_path):
    cells = [np.full((8, 8), 10 * row, np.uint8).tolist() for row in range(12)]
    users = ["bea", "ada"] * 6
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 1, 0] * 3, "who": users}), tmp_path / "a.parquet")
    found = opened(tmp_path, partitioner="natural-id", user_column="who")
    assert (found.client_ids, found.counts, found.image_shape) == (("ada", "bea"), (6, 6), (3, 8, 8))
    assert found.load_partition(0).images[:, 0, 0, 0].tolist() == [10, 30, 50, 70, 90, 110]
    assert found.load_partition(0).labels.tolist() == [1, 0, 1, 0, 1, 0]


def test_what_cannot_be_divided_is_told_in_a_sentence(folder):
    with pytest.raises(MissingDataError, match="Class folders have no column 'who'; give parquet"):
        opened(folder, partitioner="natural-id", user_column="who")
    with pytest.raises(NotEnoughUsersError, match="cannot divide 120 images among 500 users"):
        opened(folder, partitioner="shards", num_users=500)
    for wrong in ({"partitioner": "iid"}, {"dirichlet_alpha": 0.0}, {"shards_per_user": 0}):
        with pytest.raises(DataSettingsError, match=next(iter(wrong))):
            DataSettings(**wrong)


def test_a_model_is_refused_users_who_were_divided_in_another_way(folder):
    users = opened(folder, partitioner="dirichlet", num_users=5)
    metadata = ModelMetadata(settings=division_of(users))
    check_division(metadata, opened(folder, partitioner="dirichlet", num_users=5))
    for other in ({"partitioner": "shards"}, {"partitioner": "dirichlet", "dirichlet_alpha": 0.2}):
        with pytest.raises(ModelFitError, match="users would be tested on some of them"):
            check_division(metadata, opened(folder, num_users=5, **other))
