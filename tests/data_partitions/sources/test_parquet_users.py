import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError, MissingDataError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import ModelClasses
from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.sources import image_cells, parquet_files
from persephonee.data_partitions.sources.parquet_users import ParquetUsers
from tests.conftest import real_data

COLUMNS = {"user_column": "writer_id", "label_column": "character"}
USERS = ["b", "a", "b", "c", "a", "b"]
LABELS = [0, 1, 2, 0, 1, 2]


def pixels_of(row: int, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, *, images=None, users=USERS, labels=LABELS, metadata=None, row_group_size=2, **more):
    if images is None:
        images = [{"bytes": png(pixels_of(row)), "path": None} for row in range(len(users))]
    table = pa.table({"image": images, "writer_id": users, "character": labels, **more})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path


def test_a_user_gets_its_own_rows_with_the_pixels_that_were_written(tmp_path):
    users = ParquetUsers(write(tmp_path / "d.parquet"), **COLUMNS)
    assert users.client_ids == ("a", "b", "c")
    assert users.counts == (2, 3, 1)
    assert (users.num_classes, users.image_shape, users.class_names) == (3, (1, 5, 4), None)
    samples = users.load_partition(1)
    assert samples.labels.tolist() == [0, 2, 2]
    assert np.array_equal(samples.images[:, 0], torch.from_numpy(np.stack([pixels_of(row) for row in (0, 2, 5)])))


@pytest.mark.parametrize(
    "cell",
    [
        lambda array, folder: png(array),
        lambda array, folder: array.tolist(),
        lambda array, folder: (array / 255).tolist(),
        lambda array, folder: array[:, :, None].tolist(),
        lambda array, folder: {"bytes": None, "path": _saved(array, folder)},
    ],
    ids=["bytes", "integers", "floats", "with channels", "path"],
)
def test_every_way_to_hold_an_image_gives_the_same_pixels(tmp_path, cell):
    images = [cell(pixels_of(row), tmp_path) for row in range(6)]
    users = ParquetUsers(write(tmp_path / "d.parquet", images=images), **COLUMNS)
    assert np.array_equal(users.load_partition(2).images[0, 0], pixels_of(3))


def _saved(array: np.ndarray, folder) -> str:
    name = f"{array.sum()}.png"
    (folder / name).write_bytes(png(array))
    return name


def test_coloured_images_have_three_channels_even_when_some_are_grey(tmp_path):
    arrays = [pixels_of(row, (5, 4) if row == 1 else (5, 4, 3)) for row in range(6)]
    users = ParquetUsers(write(tmp_path / "d.parquet", images=[png(array) for array in arrays]), **COLUMNS)
    assert users.image_shape == (3, 5, 4)
    grey, coloured = users.load_partition(0).images
    assert np.array_equal(grey[0], grey[2])
    assert np.array_equal(coloured, arrays[4].transpose(2, 0, 1))


def test_names_come_from_the_schema_and_strings_are_sorted(tmp_path):
    features = {"character": {"_type": "ClassLabel", "names": ["x", "y", "z"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    named = ParquetUsers(write(tmp_path / "n.parquet", metadata=metadata), **COLUMNS)
    assert named.class_names == ("x", "y", "z")
    texts = ParquetUsers(write(tmp_path / "s.parquet", labels=list("qpqrpp")), **COLUMNS)
    assert texts.class_names == ("p", "q", "r")
    assert texts.load_partition(1).labels.tolist() == [1, 1, 0]


def test_several_files_a_folder_and_a_pattern_are_one_table(tmp_path):
    write(tmp_path / "1.parquet")
    write(tmp_path / "2.parquet", users=["c", "d"], labels=["0", "3"])
    with pytest.raises(BrokenDataError, match="differ"):
        ParquetUsers(tmp_path, **COLUMNS)
    images = [pixels_of(8).tolist(), pixels_of(9).tolist()]
    write(tmp_path / "2.parquet", users=["c", "d"], labels=[0, 3], images=images)
    for path in (tmp_path, tmp_path / "*.parquet"):
        users = ParquetUsers(path, **COLUMNS)
        assert (users.client_ids, users.counts, users.num_classes) == (("a", "b", "c", "d"), (2, 3, 2, 1), 4)
        assert np.array_equal(users.load_partition(3).images[0, 0], pixels_of(9))


def test_the_domain_is_that_of_all_a_user_s_rows(tmp_path):
    users = ParquetUsers(write(tmp_path / "d.parquet", hsf_id=[0, 4, 0, 4, 4, 1]), **COLUMNS)
    assert [users.load_partition(index).domain for index in range(3)] == ["hsf_id=4", None, "hsf_id=4"]


@pytest.mark.parametrize("column", ["writer_id", "character", "image"])
def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path, column):
    table = pq.read_table(write(tmp_path / "d.parquet")).drop_columns([column])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(MissingDataError, match=rf"no column '{column}'.*columns are {', '.join(table.column_names)}"):
        ParquetUsers(tmp_path / "d.parquet", **COLUMNS)


def test_a_column_that_only_the_second_file_lacks_is_named_with_the_file(tmp_path):
    write(tmp_path / "1.parquet")
    for column in ("image", "writer_id", "character"):
        table = pq.read_table(write(tmp_path / "2.parquet")).drop_columns([column])
        pq.write_table(table, tmp_path / "2.parquet")
        with pytest.raises(MissingDataError, match=rf"2\.parquet has no column '{column}'; its columns are"):
            ParquetUsers(tmp_path, **COLUMNS)


def test_an_image_of_more_pixels_than_pillow_decodes_is_named_by_row(tmp_path, monkeypatch):
    path = write(tmp_path / "d.parquet")
    users = ParquetUsers(path, **COLUMNS)
    # it refuses twice as many as this; the images have 20
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(BrokenDataError, match=r"The image in row 0 of .* cannot be used: it is too large"):
        users.load_partition(1)
    with pytest.raises(BrokenDataError, match=r"The image in row 1 of .* cannot be used: it is too large"):
        ParquetUsers(path, **COLUMNS)


def test_an_image_that_does_not_decode_is_named_by_row(tmp_path):
    images = [png(pixels_of(row)) for row in range(6)]
    for broken in (b"no image", images[3][: len(images[3]) // 2], b""):
        path = write(tmp_path / "d.parquet", images=[*images[:3], broken, *images[4:]])
        with pytest.raises(BrokenDataError, match=r"The image in row 3 of .*d\.parquet cannot be used"):
            ParquetUsers(path, **COLUMNS).load_partition(2)


def test_an_image_of_another_size_is_refused(tmp_path):
    images = [png(pixels_of(row, (5, 4) if row != 2 else (6, 4))) for row in range(6)]
    users = ParquetUsers(write(tmp_path / "d.parquet", images=images), **COLUMNS)
    with pytest.raises(BrokenDataError, match=r"User b: an image is 4x6 px .* 4x5 px"):
        users.load_partition(1)


@pytest.mark.parametrize(("labels", "num_classes", "wrong"), [([0, 1, -1, 0, 1, 2], None, -1), (LABELS, 2, 2)])
def test_a_label_out_of_range_is_named_by_row(tmp_path, labels, num_classes, wrong):
    path = write(tmp_path / "d.parquet", labels=labels)
    with pytest.raises(LabelRangeError, match=rf"'character' holds the label {wrong} in row 2 .* \[0, \d\)"):
        ParquetUsers(path, num_classes=num_classes, **COLUMNS)


def test_a_label_column_of_another_kind_is_refused(tmp_path):
    with pytest.raises(BrokenDataError, match="holds double; expected integers or strings"):
        ParquetUsers(write(tmp_path / "d.parquet", labels=[0.5] * 6), **COLUMNS)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.decimal128(22, 1)])
def test_whole_numbers_that_became_fractions_are_labels(tmp_path, kind):
    path = write(tmp_path / "d.parquet", labels=pa.array(LABELS).cast(kind, safe=False))
    users = ParquetUsers(path, **COLUMNS)
    assert users.load_partition(1).labels.tolist() == [0, 2, 2]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = pq.read_table(write(tmp_path / "d.parquet"))
    pq.write_table(table.append_column("character", table["character"]), tmp_path / "d.parquet")
    with pytest.raises(BrokenDataError, match="has the column 'character' twice"):
        ParquetUsers(tmp_path / "d.parquet", **COLUMNS)


@pytest.mark.parametrize(("column", "values"), [("users", [*USERS[:4], None, "b"]), ("labels", [*LABELS[:4], None, 1])])
def test_an_empty_cell_is_named_by_row(tmp_path, column, values):
    images = [png(pixels_of(row)) for row in range(6)]
    path = write(tmp_path / "d.parquet", images=images, **{column: values})
    with pytest.raises(BrokenDataError, match="empty in 1 rows, the first being row 4"):
        ParquetUsers(path, **COLUMNS)


def test_a_file_that_is_cut_off_or_no_parquet_is_refused_in_one_sentence(tmp_path):
    whole = write(tmp_path / "d.parquet").read_bytes()
    for text in (whole[: len(whole) // 2], b"text", b""):
        (tmp_path / "d.parquet").write_bytes(text)
        with pytest.raises(BrokenDataError, match=r"d\.parquet is no complete parquet file") as caught:
            ParquetUsers(tmp_path / "d.parquet", **COLUMNS)
        assert "\n" not in str(caught.value)


def class_label(names: list[str]) -> dict[str, str]:
    features = {"character": {"_type": "ClassLabel", "names": names}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def test_files_that_number_the_same_classes_otherwise_are_mapped_by_name(tmp_path):
    write(tmp_path / "1.parquet", metadata=class_label(["x", "y", "z"]))
    write(tmp_path / "2.parquet", metadata=class_label(["z", "new", "x"]))
    users = ParquetUsers(tmp_path, **COLUMNS)
    assert users.class_names == ("x", "y", "z", "new")
    # user b has the labels 0, 2, 2 in both files: x z z, then z x x
    assert users.load_partition(1).labels.tolist() == [0, 2, 2, 2, 0, 0]
    write(tmp_path / "2.parquet")
    with pytest.raises(BrokenDataError, match="Some of the files name the classes of column 'character' and others"):
        ParquetUsers(tmp_path, **COLUMNS)
    write(tmp_path / "2.parquet", metadata=class_label(["z", "x"]))
    with pytest.raises(LabelRangeError, match=r"outside \[0, 2\)"):
        ParquetUsers(tmp_path, **COLUMNS)


def test_a_model_that_numbers_the_same_classes_otherwise_decides(tmp_path):
    path = write(tmp_path / "d.parquet", metadata=class_label(["x", "y", "z"]))
    users = ParquetUsers(path, model=ModelClasses(count=3, names=("z", "y", "x")), **COLUMNS)
    assert users.class_names == ("z", "y", "x")
    assert users.load_partition(1).labels.tolist() == [2, 0, 0]


def test_columns_of_arrow_s_view_and_dictionary_types_are_read_like_any_other(tmp_path):
    cells = [png(pixels_of(row)) for row in range(6)]
    images = [
        pa.array(cells, pa.binary_view()),
        pa.StructArray.from_arrays(
            [pa.array(cells, pa.binary_view()), pa.nulls(6, pa.string_view())], ["bytes", "path"]
        ),
    ]
    for image in images:
        path = write(
            tmp_path / "d.parquet",
            images=image,
            users=pa.array(USERS, pa.string_view()),
            labels=pa.array(list("qpqrpp")).dictionary_encode(),
            # pyarrow cannot slice a view to write it
            row_group_size=6,
        )
        users = ParquetUsers(path, **COLUMNS)
        assert (users.client_ids, users.class_names) == (("a", "b", "c"), ("p", "q", "r"))
        assert np.array_equal(users.load_partition(2).images[0, 0], pixels_of(3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1], [2], [1], [3], [2], [1]], "holds list<.*which names no users; name a column of text"),
        ([{"a": user} for user in USERS], "holds struct<.*which names no users"),
        ([0.5, 1.5, 0.5, 2.5, 1.5, 0.5], "holds double, which names no users"),
        ([b"\xff" + user.encode() for user in USERS], "holds binary, which is no text"),
        (["", *USERS[1:]], "holds the user id '', which cannot be used: it is empty"),
        (["u" * 129, *USERS[1:]], "holds the user id .* cannot be used: it has 129 characters"),
    ],
)
def test_a_column_that_names_no_users_is_refused_with_what_to_name(tmp_path, values, message):
    images = [png(pixels_of(row)) for row in range(6)]
    with pytest.raises(BrokenDataError, match=f"Column 'writer_id' {message}"):
        ParquetUsers(write(tmp_path / "d.parquet", images=images, users=values), **COLUMNS)


def test_users_are_named_by_numbers_dates_and_bytes_that_are_text(tmp_path):
    images = [png(pixels_of(row)) for row in range(6)]
    for values, first in (([2, 1, 2, 3, 1, 2], "1"), ([user.encode() for user in USERS], "a"), ([True] * 6, "true")):
        users = ParquetUsers(write(tmp_path / "d.parquet", images=images, users=values), **COLUMNS)
        assert users.client_ids[0] == first


def test_hidden_copies_of_files_are_left_out_and_counted(tmp_path, caplog):
    write(tmp_path / "d.parquet")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    write(tmp_path / ".ipynb_checkpoints" / "d-checkpoint.parquet")
    (tmp_path / "._d.parquet").write_bytes(b"\0\5\26\7")
    assert ParquetUsers(tmp_path, **COLUMNS).counts == (2, 3, 1)
    assert "2 hidden files are left out" in caplog.text


def test_a_small_file_that_decodes_to_gigabytes_is_refused_without_decoding_it(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "MAX_COLUMN_BYTES", 2**26)
    rows = 30_000
    image, word = pa.array([b"x" * 100_000]), pa.array(["w" * 100_000])
    repeated = [pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), value) for value in (image, word)]
    table = {"image": repeated[0], "writer_id": ["a"] * rows, "character": [0] * rows}
    for change in ({}, {"writer_id": repeated[1]}, {"character": repeated[1]}):
        path = tmp_path / "bomb.parquet"
        pq.write_table(pa.table({**table, **change}), path, compression="zstd")
        assert path.stat().st_size < 50_000
        with pytest.raises(BrokenDataError, match=r"bomb\.parquet: .* more than \d+ bytes in memory; write the file"):
            ParquetUsers(path, **COLUMNS)


def test_a_user_whose_images_do_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    users = ParquetUsers(write(tmp_path / "d.parquet"), **COLUMNS)
    monkeypatch.setattr(image_cells, "MAX_USER_BYTES", 59)
    assert len(users.load_partition(0)) == 2
    with pytest.raises(BrokenDataError, match=r"User b has 3 images of 4x5 px.*give smaller or fewer images"):
        users.load_partition(1)


def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "d.parquet")
    for path in (tmp_path, tmp_path / "d.parquet", tmp_path / "*.parquet"):
        with pytest.raises(BrokenDataError, match="is no regular file but a pipe"):
            ParquetUsers(path, **COLUMNS)


def test_an_index_out_of_range_is_refused(tmp_path):
    users = ParquetUsers(write(tmp_path / "d.parquet"), **COLUMNS)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=rf"Partition {index} is not in \[0, 3\)"):
            users.load_partition(index)


def test_real_digits_by_writer():
    path = real_data("qmnist-by-writer/train.parquet")
    users = open_partitions(DataSettings(dataset="parquet", data_path=path))
    assert (users.num_partitions, sum(users.counts), users.num_classes) == (736, 60841, 10)
    assert (min(users.counts), max(users.counts)) == (8, 131)
    assert users.class_names == tuple("0123456789")
    samples = users.load_partition(users.client_ids.index("hsf4_w2108"))
    assert (samples.images.shape[1:], samples.domain) == ((1, 28, 28), "hsf_id=4")
    # white paper: the corners of nearly every digit are empty
    assert (samples.images[:, 0, 0, 0] == 255).mean() > 0.99
