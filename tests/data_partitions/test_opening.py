from pathlib import Path

import pytest

from persephonee.data_partitions.errors import DataError, DataSettingsError, MissingDataError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings


def test_settings_survive_a_flat_dictionary():
    settings = DataSettings(dataset="parquet", data_path=Path("a/b"), user_column="user", num_classes=5, seed=3)
    flat = settings.to_flat()
    assert all(isinstance(value, str | int | float | bool) for value in flat.values())
    assert DataSettings.from_flat(flat) == settings
    assert DataSettings.from_flat(DataSettings().to_flat()) == DataSettings()


def test_an_empty_path_and_no_classes_stand_for_none():
    assert DataSettings.from_flat({"data_path": "", "num_classes": 0}) == DataSettings()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "mnist"}, "--dataset mnist is not known; choose one of synthetic-writers, femnist, parquet, leaf"),
        ({"dataset": "leaf"}, "--dataset leaf needs --data-path"),
        ({"dataset": "femnist", "data_path": "x"}, "--dataset femnist takes no --data-path"),
        ({"num_writers": 3551}, r"num_writers=3551 is not in \[1, 3550\]"),
        ({"num_classes": 1}, "num_classes=1 is too small"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"colour": "red"}, "'colour' is no setting of the data"),
        ({"seed": "1"}, "seed='1' is str; expected int"),
        ({"seed": True}, "seed=True is bool; expected int"),
        ({"dataset": 1}, "dataset=1 is int; expected str"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(DataSettingsError, match=message) as caught:
        DataSettings.from_flat(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", ["parquet", "leaf"])
def test_a_missing_path_is_named(dataset, tmp_path):
    with pytest.raises(MissingDataError, match="nowhere does not exist"):
        open_partitions(DataSettings(dataset=dataset, data_path=tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"holds no \.(parquet|json) file"):
        open_partitions(DataSettings(dataset=dataset, data_path=tmp_path))


def test_the_built_in_writers_open_without_a_download():
    partitions = open_partitions(DataSettings(num_writers=7, seed=2))
    assert (partitions.num_partitions, partitions.num_classes, partitions.image_shape) == (7, 62, (1, 28, 28))
    assert len(partitions.load_partition(6)) == partitions.counts[6]
