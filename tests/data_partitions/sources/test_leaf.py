import json
import os

import numpy as np
import pytest

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.sources import leaf
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


def test_labels_may_be_whole_numbers_written_as_floats(tmp_path):
    value = content({"a": 4})
    value["user_data"]["a"]["y"] = [0.0, 1.0, 1.0, 0.0]
    assert LeafUsers(save(tmp_path / "whole", "0.json", value)).load_partition(0).labels.tolist() == [0, 1, 1, 0]
    value["user_data"]["a"]["y"] = [0.0, 1.5, 1.0, 0.0]
    with pytest.raises(BrokenDataError, match="not a list of integers"):
        LeafUsers(save(tmp_path / "half", "0.json", value))


def test_a_split_by_user_leaves_every_user_s_samples_to_be_divided(tmp_path, caplog):
    save(tmp_path / "train", "0.json", content({"a": 3, "b": 2}))
    save(tmp_path / "test", "0.json", content({"c": 4}))
    users = LeafUsers(tmp_path)
    assert (users.client_ids, users.counts) == (("a", "b", "c"), (3, 2, 4))
    assert all(users.load_partition(index).fixed_test is None for index in range(3))
    assert "split by user (-t user)" in caplog.text


def test_whole_numbers_reach_to_255_in_all_of_the_data_or_in_none(tmp_path):
    whole = content({"a": 3, "blank": 1, "white": 1})
    data = whole["user_data"]
    data["a"]["x"] = pixels_of("a", 9)[:3].tolist()
    data["blank"]["x"], data["white"]["x"] = [[0] * 9], [[1] * 9]
    users = LeafUsers(save(tmp_path / "whole", "0.json", whole))
    assert np.array_equal(users.load_partition(0).images.reshape(3, -1), pixels_of("a", 9)[:3])
    assert np.unique(users.load_partition(2).images).tolist() == [1]
    # a blank page of a data set with fractions may be written without a point
    data["a"]["x"] = (pixels_of("a", 9)[:3] / 255).tolist()
    users = LeafUsers(save(tmp_path / "fractions", "0.json", whole))
    assert np.unique(users.load_partition(2).images).tolist() == [255]
    data["white"]["x"] = [[255] * 9]
    with pytest.raises(BrokenDataError, match=r"User white has images of whole numbers.*user a of fractions.*divide"):
        LeafUsers(save(tmp_path / "both", "0.json", whole))
    data["a"]["x"], data["white"]["x"] = [[0] * 9] * 3, [[256] * 9]
    with pytest.raises(BrokenDataError, match=r"user white cannot be used .*not from 0 to 255"):
        LeafUsers(save(tmp_path / "beyond", "0.json", whole)).load_partition(2)


@pytest.mark.parametrize("indent", [None, 1])
def test_images_as_rows_of_rows_are_those_of_flat_lists(tmp_path, indent):
    flat = content({"a": 3, "b": 1})
    for record in flat["user_data"].values():
        record["x"] = np.reshape(record["x"], (-1, SIDE, SIDE)).tolist()
    users = LeafUsers(save(tmp_path, "0.json", json.dumps(flat, indent=indent)))
    assert users.image_shape == (1, SIDE, SIDE)
    assert np.array_equal(users.load_partition(0).images.reshape(3, -1), pixels_of("a", 9)[:3])


@pytest.mark.parametrize("shape", [(-1, SIDE, SIDE, 1), (-1, 1, SIDE, SIDE)])
def test_an_axis_of_one_channel_does_not_matter(tmp_path, shape):
    value = content({"a": 2, "b": 1})
    flat = [LeafUsers(save(tmp_path / "flat", "0.json", value)).load_partition(i).images for i in range(2)]
    for data in value["user_data"].values():
        data["x"] = np.asarray(data["x"]).reshape(shape).tolist()
    deep = LeafUsers(save(tmp_path / "deep", "0.json", value))
    assert all(np.array_equal(deep.load_partition(i).images, images) for i, images in enumerate(flat))


@pytest.mark.parametrize(("edit", "said"), [(("]}}}", "]}},}"), "'}', where a name"), (('"', "'"), "where a name")])
def test_what_is_no_json_is_not_called_cut_off(tmp_path, edit, said):
    text = json.dumps(content({"a": 2}))
    save(tmp_path, "0.json", text.replace(*edit))
    with pytest.raises(BrokenDataError, match=said):
        LeafUsers(tmp_path)


def test_coloured_images_are_told_where_they_belong(tmp_path):
    value = content({"a": 1})
    value["user_data"]["a"]["x"] = np.zeros((1, SIDE, SIDE, 3)).tolist()
    with pytest.raises(BrokenDataError, match=r"\[1, 3, 3, 3\].* use parquet"):
        LeafUsers(save(tmp_path, "0.json", value))


def test_a_mark_at_the_beginning_is_passed_over_and_utf16_is_named(tmp_path):
    text = json.dumps(content({"a": 2}))
    (tmp_path / "0.json").write_text(text, encoding="utf-8-sig")
    assert np.array_equal(LeafUsers(tmp_path).load_partition(0).images.reshape(2, -1), pixels_of("a", 9)[:2])
    (tmp_path / "0.json").write_text(text, encoding="utf-16")
    with pytest.raises(BrokenDataError, match="its text is UTF-16, not UTF-8"):
        LeafUsers(tmp_path)


def test_hidden_files_are_left_out_and_pipes_refused(tmp_path):
    save(tmp_path, "0.json", content({"a": 2}))
    (tmp_path / "._0.json").write_bytes(b"\0\5\26\7")
    assert LeafUsers(tmp_path).counts == (2,)
    os.mkfifo(tmp_path / "1.json")
    for path in (tmp_path, tmp_path / "1.json"):
        with pytest.raises(BrokenDataError, match=r"1\.json is no regular file but a pipe"):
            LeafUsers(path)


def test_json_that_would_exhaust_the_parser_is_refused_in_a_sentence(tmp_path, monkeypatch):
    text = json.dumps(content({"a": 1}))
    deep = text.replace('["a"]', "[" * 100_000 + "]" * 100_000)
    with pytest.raises(BrokenDataError, match="nested too deeply"):
        LeafUsers(save(tmp_path, "0.json", deep))
    monkeypatch.setattr(leaf, "MAX_JSON_BYTES", 10)
    with pytest.raises(BrokenDataError, match="more than 10 bytes"):
        LeafUsers(save(tmp_path, "0.json", text))


def test_a_walk_finds_every_value_where_the_json_module_does():
    value = {"a": [1, {"b": '\\"}'}], "c": {}, "d": None, "e": -1.5e3, "f": "]", "g": [[1, 2], [3]], "h": []}
    walk = JsonWalk(json.dumps(value, indent=2).encode())
    assert {key: walk.parse() for key in walk.members()} == value


def test_real_digits_as_leaf_writes_them_are_those_of_the_parquet_file():
    as_leaf = open_partitions(DataSettings(dataset="leaf", data_path=real_data("qmnist-leaf")))
    parquet_path = real_data("qmnist-by-writer/train.parquet")
    parquet = open_partitions(DataSettings(dataset="parquet", data_path=parquet_path))
    assert (as_leaf.num_partitions, as_leaf.num_classes, as_leaf.image_shape) == (24, 10, (1, 28, 28))
    for index in (0, 5, 23):
        samples = as_leaf.load_partition(index)
        same = parquet.load_partition(parquet.client_ids.index(samples.client_id))
        assert sorted(map(bytes, samples.images)) == sorted(map(bytes, same.images))
        assert np.array_equal(np.bincount(samples.labels), np.bincount(same.labels))
        assert 0 < samples.fixed_test.sum() < len(samples) / 4
