"""FEMNIST as published: files of the hub's and of LEAF's format with its numbers of writers and samples."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.sources.published_sets import FEMNIST_CLASSES, FEMNIST_OF_LEAF, FEMNIST_OF_THE_HUB
from persephonee.experiments.data import femnist
from persephonee.experiments.data.hub_parquet import as_png, hub_schema


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, logger="persephonee")
    return caplog


def samples_of(users: int, samples: int) -> np.ndarray:
    """Return how many samples each user has, as even as can be."""
    return np.diff(np.linspace(0, samples, users + 1).astype(np.int64))


def writers(users: int) -> list[str]:
    return [f"f{number:04d}_{number % 50:02d}" for number in range(users)]


def write_hub_parquet(path, users: int, samples: int) -> None:
    schema = hub_schema({"image": "image", "writer_id": "string", "hsf_id": "int64", "character": FEMNIST_CLASSES})
    of_writer = np.repeat(np.arange(users), samples_of(users, samples))
    cell = pa.array([as_png(np.full((28, 28), 255, dtype=np.uint8))], type=schema.field("image").type)
    columns = [
        cell.take(pa.array(np.zeros(samples, dtype=np.int64))),
        pa.array(writers(users)).take(pa.array(of_writer)),
        pa.array(of_writer % 8),
        pa.array(np.arange(samples) % 62),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=100_000)


def write_leaf(folder, users: int, samples: int) -> None:
    """Write LEAF's files of 100 writers each, with images of one pixel: the loader does not care how large they are."""
    folder.mkdir(parents=True)
    counts, names = samples_of(users, samples).tolist(), writers(users)
    for number, start in enumerate(range(0, users, 100)):
        part = dict(list(zip(names, counts, strict=True))[start : start + 100])
        data = {user: {"x": [[0.5]] * count, "y": [n % 62 for n in range(count)]} for user, count in part.items()}
        text = json.dumps({"users": [*part], "num_samples": [*part.values()], "user_data": data})
        (folder / f"all_data_{number}.json").write_text(text)


def test_the_hub_s_files_with_the_published_numbers_are_femnist_as_published(tmp_path, log):
    published = FEMNIST_OF_THE_HUB
    write_hub_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", published.users, published.samples)
    users = open_partitions(DataSettings(dataset="parquet", data_path=tmp_path))
    assert (users.num_partitions, sum(users.counts), users.num_classes) == (3_597, 814_277, 62)
    assert users.load_partition(3).domain == "hsf_id=3"
    assert log.messages == ["The data has 3,597 users and 814,277 samples, as flwrlabs/femnist was published"]


def test_leaf_s_files_with_the_published_numbers_are_femnist_as_published(tmp_path, log):
    write_leaf(tmp_path / "train", FEMNIST_OF_LEAF.users, FEMNIST_OF_LEAF.samples)
    users = open_partitions(DataSettings(dataset="leaf", data_path=tmp_path))
    assert (users.num_partitions, sum(users.counts), users.num_classes) == (3_550, 805_263, 62)
    assert log.messages == ["The data has 3,550 users and 805,263 samples, as LEAF's FEMNIST was published"]


def test_a_part_says_how_much_it_is_and_more_than_was_published_is_a_warning(tmp_path, log, monkeypatch):
    write_hub_parquet(tmp_path / "train.parquet", 3, 186)
    open_partitions(DataSettings(dataset="parquet", data_path=tmp_path))
    assert [record.levelname for record in log.records] == ["INFO"]
    assert log.messages[0].startswith("The data has 3 users and 186 samples, of 3,597 users and 814,277 samples")
    log.clear()
    FEMNIST_OF_THE_HUB.compare([100_000] * 10, is_whole=False)
    FEMNIST_OF_THE_HUB.compare([100] * 10, is_whole=True)
    assert [record.levelname for record in log.records] == ["WARNING", "WARNING"]
    assert "The data has 10 users and 1,000,000 samples; expected 3,597 users" in log.messages[0]


def test_users_of_other_names_or_classes_are_not_taken_for_femnist_s(tmp_path, log):
    write_hub_parquet(tmp_path / "train.parquet", 3, 186)
    table = pq.read_table(tmp_path / "train.parquet")
    ids = pa.array([f"user-{name}" for name in table["writer_id"].to_pylist()])
    pq.write_table(table.set_column(1, "writer_id", ids), tmp_path / "train.parquet")
    open_partitions(DataSettings(dataset="parquet", data_path=tmp_path))
    assert log.messages == []


def test_the_script_says_whether_files_are_femnist_as_published(tmp_path, capsys):
    write_hub_parquet(tmp_path / "hub" / "data" / "train.parquet", 3, 186)
    write_leaf(tmp_path / "leaf", 2, 124)
    femnist.main(out=tmp_path / "hub")
    femnist.main(leaf=tmp_path / "leaf")
    of_hub, of_leaf = capsys.readouterr().out.splitlines()
    assert "hub: 3 writers, 186 samples, 62 classes; flwrlabs/femnist was published with 3,597" in of_hub
    assert of_hub.endswith("814,277 samples: which differs.")
    assert "LEAF's FEMNIST was published with 3,550 writers and 805,263 samples" in of_leaf
