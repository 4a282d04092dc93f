import pytest

from persephonee.data_partitions.errors import MissingDataError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.sources.femnist import FemnistUsers, open_femnist
from tests.conftest import real_data

datasets = pytest.importorskip("datasets")
partitioners = pytest.importorskip("flwr_datasets.partitioner")


def by_writer(dataset):
    partitioner = partitioners.NaturalIdPartitioner(partition_by="writer_id")
    partitioner.dataset = dataset
    return partitioner


def test_a_dataset_of_the_hub_s_format_gives_the_same_users_as_the_parquet_source(tmp_path):
    path = real_data("qmnist-by-writer/train.parquet")
    dataset = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path)).select(range(2000))
    femnist = FemnistUsers(by_writer(dataset))
    parquet = open_partitions(DataSettings(dataset="parquet", data_path=path))
    assert femnist.client_ids == tuple(sorted(set(dataset["writer_id"])))
    assert sum(femnist.counts) == 2000
    whole = next(index for index, client_id in enumerate(femnist.client_ids) if femnist.counts[index] > 90)
    ours = femnist.load_partition(whole)
    same = parquet.load_partition(parquet.client_ids.index(ours.client_id))
    if len(same) == len(ours):
        assert (ours.images == same.images).all()
        assert (ours.labels == same.labels).all()
    assert ours.domain == same.domain
    assert len(ours) == femnist.counts[whole]


def test_a_dataset_without_a_column_is_refused_by_name():
    dataset = datasets.Dataset.from_dict({"image": [1], "writer_id": ["a"]})
    with pytest.raises(MissingDataError, match="no column 'character'"):
        FemnistUsers(by_writer(dataset))


def test_without_a_network_one_sentence_says_so(monkeypatch, tmp_path):
    # an offline hub answers at once; a network that is missing takes the hub's client half a minute of retries
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingDataError, match=r"could not be fetched .* no copy is cached") as caught:
        open_femnist("persephonee-tests/is-not-there")
    assert "\n" not in str(caught.value)
