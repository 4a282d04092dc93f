import json

import numpy as np
import pytest
import torch

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError
from persephonee.data_partitions.opening import DataSettings, open_partitions
from persephonee.data_partitions.sources.json_walk import JsonWalk
from persephonee.data_partitions.sources.leaf import LeafUsers
from tests.conftest import real_data

SIDE = 3


def pixels_of(user: str, count: int) -> np.ndarray:
    return np.random.default_rng(list(user.encode())).integers(0, 256, (count, SIDE * SIDE))


def content(counts: dict[str, int], first: int = 0) -> dict:
    """LEAF's file for users with so many samples each, beginning with the first-th of pixels_of(user, 9)."""
    rows = {user: pixels_of(user, 9)[first : first + count] for user, count in counts.items()}
    data = {user: {"x": (x / 255).tolist(), "y": [n % 2 for n in range(len(x))]} for user, x in rows.items()}
    return {"users": list(counts), "num_samples": list(counts.values()), "user_data": data}


def save(folder, name: str, value: dict | str):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_train_and_test_folders_become_one_user_with_a_fixed_test_part(tmp_path):
    save(tmp_path / "train", "0.json", content({"b": 3, "a": 2}))
    save(tmp_path / "train", "1.json", content({"c": 4}))
    save(tmp_path / "test", "0.json", content({"b": 1, "a": 2}, first=5))
    users = LeafUsers(tmp_path)
    assert (users.client_ids, users.counts) == (("a", "b", "c"), (4, 4, 4))
    assert (users.num_classes, users.image_shape) == (2, (1, SIDE, SIDE))
    samples = users.load_partition(1)
    assert samples.fixed_test.tolist() == [False, False, False, True]
    assert samples.labels.tolist() == [0, 1, 0, 0]
    assert np.array_equal(samples.images.reshape(4, -1), pixels_of("b", 9)[[0, 1, 2, 5]])
    assert not users.load_partition(2).fixed_test.any()


def test_a_folder_without_a_split_fixes_no_test_part(tmp_path):
    users = LeafUsers(save(tmp_path, "all_data.json", content({"a": 2, "z": 0})))
    assert users.client_ids == ("a",)
    assert users.load_partition(0).fixed_test is None
    assert LeafUsers(tmp_path / "all_data.json").client_ids == ("a",)


def test_layout_and_further_keys_do_not_matter(tmp_path):
    value = content({'a "quoted" }] name': 2, "ü": 1}) | {"hierarchies": [{"x": "]]"}, None, 1.5], "version": 2}
    value["user_data"]["ü"]["z"] = {"note": "}"}
    reordered = {key: value[key] for key in ("version", "user_data", "hierarchies", "num_samples", "users")}
    save(tmp_path, "0.json", json.dumps(reordered, indent=1))
    users = LeafUsers(tmp_path)
    assert users.client_ids == ('a "quoted" }] name', "ü")
    assert users.counts == (2, 1)


def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path):
    text = json.dumps(content({"a": 2, "b": 1}))
    for length in range(len(text)):
        save(tmp_path, "0.json", text[:length])
        with pytest.raises(BrokenDataError, match=r"0\.json") as caught:
            LeafUsers(tmp_path)
        assert "\n" not in str(caught.value)


def without(value: dict, *keys: str) -> dict:
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (content({"a": 2}) | {"num_samples": [3]}, "num_samples says 3 for user a and the data holds 2"),
        (content({"a": 2}) | {"num_samples": [2, 1]}, "1 users and 2 num_samples"),
        (content({"a": 2}) | {"users": ["a", "b"], "num_samples": [2, 1]}, "user b is in users and not in user_data"),
        (content({"a": 2, "b": 1}) | {"users": ["a"], "num_samples": [2]}, "user b is in user_data and not in users"),
        (content({"a": 2}) | {"users": ["a", "a"], "num_samples": [2, 2]}, "names a user twice"),
        (content({"a": 2}) | {"users": [1]}, "users must be a list of strings"),
        (without(content({"a": 2}), "user_data"), "has no user_data"),
        (without(content({"a": 2}), "users"), "has no users"),
        (without(content({"a": 2}), "user_data", "a", "y"), "user a has no y"),
        (content({"a": 2}) | {"user_data": {"a": {"x": [[0.0] * 9], "y": [0, 1]}}}, "1 images in x and 2 labels in y"),
        (content({"a": 1}) | {"user_data": {"a": {"x": [[0.0] * 9], "y": ["q"]}}}, "not a list of integers"),
        (
            content({"a": 1}) | {"user_data": {"a": {"x": [["i.jpg"]], "y": [0]}}},
            "list of lists of numbers was expected",
        ),
        (content({"a": 1}) | {"user_data": {"a": {"x": [[0.0] * 8], "y": [0]}}}, "images x of user a cannot be used"),
        (content({"a": 1}) | {"user_data": {"a": {"x": [[7.0] * 9], "y": [0]}}}, "images x of user a cannot be used"),
        ("[1, 2]", "no complete JSON"),
        (content({}), "holds no samples"),
    ],
)
def test_a_file_that_disagrees_with_itself_is_refused(tmp_path, value, message):
    with pytest.raises(BrokenDataError, match=message) as caught:
        LeafUsers(save(tmp_path, "0.json", value))
    assert "\n" not in str(caught.value)


def test_a_user_in_two_files_of_one_part_is_refused(tmp_path):
    save(tmp_path, "0.json", content({"a": 1}))
    save(tmp_path, "1.json", content({"a": 1}))
    with pytest.raises(BrokenDataError, match=r"User a is in .*0\.json and again in .*1\.json"):
        LeafUsers(tmp_path)


def test_a_label_out_of_range_names_the_user(tmp_path):
    save(tmp_path, "0.json", content({"a": 1}) | {"user_data": {"a": {"x": [[0.0] * 9], "y": [62]}}})
    with pytest.raises(LabelRangeError, match=r"user a has the label 62; expected \[0, 62\)"):
        LeafUsers(tmp_path, num_classes=62)


def test_a_walk_finds_every_value_where_the_json_module_does():
    value = {"a": [1, {"b": '\\"}'}], "c": {}, "d": None, "e": -1.5e3, "f": "]", "g": [[1, 2], [3]], "h": []}
    walk = JsonWalk(json.dumps(value, indent=2).encode())
    assert {key: walk.parse() for key in walk.members()} == value


def test_real_digits_as_leaf_writes_them_are_those_of_the_parquet_file():
    leaf = open_partitions(DataSettings(dataset="leaf", data_path=real_data("qmnist-leaf")))
    parquet_path = real_data("qmnist-by-writer/train.parquet")
    parquet = open_partitions(DataSettings(dataset="parquet", data_path=parquet_path))
    assert (leaf.num_partitions, leaf.num_classes, leaf.image_shape) == (24, 10, (1, 28, 28))
    for index in (0, 5, 23):
        samples = leaf.load_partition(index)
        same = parquet.load_partition(parquet.client_ids.index(samples.client_id))
        assert sorted(map(bytes, samples.images.numpy())) == sorted(map(bytes, same.images.numpy()))
        assert torch.equal(samples.labels.bincount(), same.labels.bincount())
        assert 0 < samples.fixed_test.sum() < len(samples) / 4
