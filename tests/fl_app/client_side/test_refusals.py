"""What leaves a device when something on it goes wrong: the kind of error, and nothing of its data or disk."""

import errno

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persephonee.clients.errors import ClientError, ImageError, LabelsRequiredError, StoreFullError
from persephonee.data_partitions.errors import DataError, UserTooSmallError
from persephonee.fl_app.client_side.refusals import refusal_of
from persephonee.fl_app.errors import AppError, RunFailedError, WireError
from persephonee.multi_exit.errors import MultiExitError
from tests.fl_app.whole_runs import run, with_status

MORE = "; the client's own log says more"


pytestmark = pytest.mark.usefixtures("draw_nothing")


def status_of(nodes, settings, make_grid):
    return with_status(run(make_grid(nodes, settings), settings))


def everything_sent_by(node) -> str:
    return repr([{name: dict(record) for name, record in content.items()} for content in node.sent])


def private_data(folder, label: int):
    """Write the data of u1 with one label of their own into a folder that is named after them."""
    folder.mkdir()
    rows = {"image": np.zeros((40, 16, 16), dtype=np.uint8).tolist(), "writer_id": ["u1"] * 40, "character": [0] * 40}
    rows["character"][7] = label
    pq.write_table(pa.table(rows), folder / "diary.parquet")
    return folder / "diary.parquet"


def test_a_label_out_of_range_and_the_path_of_the_data_stay_on_the_device(
    settings, device_node, make_grid, tmp_path, caplog
):
    # so long that no fingerprint holds it by chance
    path = private_data(tmp_path / "home-of-zoe", label=97_531)
    nodes = [device_node("u0", 1), device_node("u1", 2, **{"data-path": str(path), "num-classes": 3})]
    status = status_of(nodes, settings, make_grid)
    assert status["u0"] == "ok"
    assert status["u1"] == f"failed: a label of the client's data is out of range{MORE}"
    sent = everything_sent_by(nodes[1])
    assert "u1" in sent
    assert not any(word in sent for word in ("97531", "zoe", "diary", "character"))
    assert "holds the label 97531 in row 7" in caplog.text and "home-of-zoe" in caplog.text


def test_the_path_of_a_damaged_store_stays_on_the_device(settings, device_node, make_grid, tmp_path, caplog):
    store = tmp_path / "home-of-zoe"
    store.mkdir()
    (store / "state.json").write_text("{")
    nodes = [device_node("u0", 1), device_node("u1", 2, store=str(store))]
    status = status_of(nodes, settings, make_grid)
    assert status["u1"] == f"refused: the client's store is damaged, in use, or of another model or user{MORE}"
    assert "zoe" not in everything_sent_by(nodes[1])
    assert "home-of-zoe" in caplog.text


def test_a_device_that_cannot_say_who_it_is_says_nothing_of_its_disk_either(settings, device_node, make_grid):
    only = device_node("u1", 2, **{"data-path": 7, "dataset": "/home/zoe"})
    with pytest.raises(RunFailedError) as caught:
        status_of([only], settings, make_grid)
    words = "a setting of the run, or of the client's node configuration, is unknown or wrong"
    assert f"the first: the client stopped with an error ({words}{MORE})" in str(caught.value)
    assert "zoe" not in str(caught.value)


def test_words_of_a_library_about_a_file_that_is_missing_stay_on_the_device(tmp_path):
    with pytest.raises(OSError) as caught:
        pq.read_table(pa.OSFile(str(tmp_path / "zoe.parquet")))
    assert "zoe" in str(caught.value.strerror)
    words = "failed: the device cannot read or write its files (No such file or directory)"
    assert refusal_of(caught.value) == words
    assert refusal_of(OSError("no number, but /home/zoe")).endswith("its files (OSError)")


def subclasses(cls: type) -> set[type]:
    return {cls, *(found for child in cls.__subclasses__() for found in subclasses(child))}


def test_no_error_that_a_user_can_cause_speaks_for_itself_unless_it_is_known_to_hold_nothing():
    speaks = set()
    for cls in set().union(*map(subclasses, (ClientError, DataError, MultiExitError, AppError))):
        error = cls("zoe", 93, "/home/zoe") if cls is UserTooSmallError else cls("/home/zoe holds the label 93")
        if "/home/zoe" in refusal_of(error):
            speaks.add(cls.__name__)
        else:
            assert refusal_of(error).endswith(MORE)
    assert speaks == {
        "UserTooSmallError",
        "LabelsRequiredError",
        "NonFiniteLossError",
        "BackboneNotAllowedError",
        "WireError",
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserTooSmallError("zoe", 5, "at least 20 are needed"), "too small: User zoe has 5 samples; at least 20 are"),
        (LabelsRequiredError("user 'zoe' has no labelled"), "refused: user 'zoe' has no labelled"),
        (WireError("the model came without its specification."), "refused: the model came without"),
        (StoreFullError("/home/zoe"), "refused: the disk under the client's store is full; "),
        # a kind without words of its own has those of its family
        (ImageError("/home/zoe/cat.png"), "refused: the client cannot personalise; "),
        (DataError("/home/zoe"), "failed: the client's data cannot be used; "),
        (KeyError("/home/zoe"), "failed: KeyError, see the client's own log"),
        (OSError(errno.EFBIG, "/home/zoe"), "failed: the device cannot read or write its files (File too large)"),
    ],
)
def test_the_server_learns_what_kind_of_thing_is_wrong(error, status):
    assert refusal_of(error).startswith(status)
