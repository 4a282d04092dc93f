import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from persephonee.data_partitions.errors import LabelRangeError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import ModelMetadata, load_network
from persephonee.server.training.global_model import make_global_model
from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
from persephonee.server.training.pretraining_settings import PretrainSettings
from tests.tiny_cnn import NAME, SIDE, SOURCE

NAMES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def network() -> MultiExitNetwork:
    """A network for the 62 classes of handwriting."""
    return build_network(NAME, num_exits=2, num_classes=62, input_size=SIDE, head="pooled", allowed=(SOURCE,))


@pytest.fixture
def own_data(tmp_path):
    """Return a function that writes one user's own samples with these labels."""

    def write(labels: list, metadata: dict | None = None, **more) -> DataSettings:
        images = np.zeros((len(labels), SIDE, SIDE), dtype=np.uint8).tolist()
        table = pa.table({"image": images, "writer_id": ["ada"] * len(labels), "character": labels})
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "mine.parquet")
        return DataSettings(dataset="parquet", data_path=tmp_path / "mine.parquet", **more)

    return write


def labels_of(data: DataSettings, network: MultiExitNetwork, names: tuple[str, ...] = ()) -> list[int]:
    partitions = open_fitting(data, network, ModelMetadata(class_names=names))
    assert partitions.num_classes == 62
    return partitions.load_partition(0).labels.tolist()


@pytest.mark.parametrize("labels", [[0, 3, 3, 0], [0, 0, 0, 0], [61, 5, 0, 7]])
def test_own_data_need_not_hold_all_the_classes_that_the_model_knows(network, own_data, labels):
    assert labels_of(own_data(labels), network) == labels


def test_words_are_numbered_as_the_model_numbers_its_classes(network, own_data):
    # in sorted order of their own they would be 1, 2, 0, 2
    assert labels_of(own_data(["b", "z", "A", "z"]), network, NAMES) == [37, 61, 10, 61]


def test_words_that_the_model_does_not_number_are_refused_and_not_numbered_by_chance(network, own_data):
    words = [chr(0x4E00 + label) for label in range(62)]
    for more in ({}, {"num_classes": 62}):
        with pytest.raises(LabelRangeError, match=r"the model has no class names.*\[0, 62\)\.$"):
            labels_of(own_data(words, **more), network)
    with pytest.raises(LabelRangeError, match=r"^The label 'ä' is not among the 62 class names of the model\.$"):
        labels_of(own_data(["a", "ä"]), network, NAMES)


def test_a_label_beyond_the_model_s_classes_is_named(network, own_data):
    with pytest.raises(LabelRangeError, match=r"the label 62 in row 1 of .*mine.parquet; expected \[0, 62\)\.$"):
        labels_of(own_data([0, 62]), network)


def test_data_that_counts_its_own_classes_has_to_agree_with_the_model(network, own_data):
    features = {"character": {"_type": "ClassLabel", "names": ["x", "y", "z"]}}
    named = {"huggingface": json.dumps({"info": {"features": features}})}
    for metadata, more in ((named, {}), (None, {"num_classes": 3})):
        with pytest.raises(AppError, match="knows 62 classes and parquet has 3"):
            labels_of(own_data([0, 1], metadata, **more), network)


def test_images_that_trained_the_model_are_not_given_to_users_by_another_division(tmp_path):
    for label in ("dark", "light"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(40):
            colour = (number, 100 * (label == "light"), 0)
            Image.new("RGB", (SIDE, SIDE), colour).save(tmp_path / "set" / label / f"{number:02d}.png")
    drawn = {"num_users": 2, "samples_per_user": 10, "label_skew_width": 1.0}
    same = DataSettings(dataset="imagefolder", data_path=tmp_path / "set", **drawn)
    other, more_users = replace(same, seed=1), replace(same, num_users=3, label_skew_width=2.0)
    pool = open_partitions(same, for_pretraining=True)
    trained = {row for rows in pool._rows for row in rows}
    tested = {row for rows in open_partitions(other)._rows for row in rows}
    # which is what the refusal is for
    assert trained & tested
    settings = GlobalModelSettings(
        backbone=NAME,
        num_exits=2,
        head="pooled",
        sources=(SOURCE,),
        training=PretrainSettings(epochs=1, batch_size=8),
        users=UserFractions(validation_fraction=0.25),
    )
    make_global_model(settings, pool, tmp_path / "M")
    network, metadata = load_network(tmp_path / "M", (SOURCE,))
    for data in (same, more_users):
        users = open_fitting(data, network, metadata)
        assert not trained & {row for rows in users._rows for row in rows}
    with pytest.raises(AppError, match=r"with data-seed=0, and with data-seed=1 .*; take data-seed=0\.$"):
        open_fitting(other, network, metadata)
    divided = metadata.settings["division"]
    with pytest.raises(AppError, match=r"take global_fraction=0\.25\.$"):
        open_fitting(same, network, ModelMetadata(settings={"division": {**divided, "global_fraction": 0.25}}))
    # an older model does not know
    assert open_fitting(other, network, ModelMetadata()).num_partitions == 2


def test_leaf_need_not_hold_all_classes_either(network, tmp_path):
    user = {"x": [[1.0] * SIDE**2] * 2, "y": [0, 3]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"users": ["ada"], "num_samples": [2], "user_data": {"ada": user}}))
    assert labels_of(DataSettings(dataset="leaf", data_path=path), network) == [0, 3]
