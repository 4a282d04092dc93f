import json

import numpy as np
import pytest

from persephonee.server.errors import ServerError
from persephonee.server.intervals import estimate
from persephonee.server.report.comparison_page import draw_comparison
from persephonee.server.results.comparison import compare
from persephonee.server.results.comparison_text import tables_of, verdicts
from tests.server.made_runs import write_run


@pytest.fixture
def first(tmp_path):
    return write_run(tmp_path / "first", {"a": 0.5, "b": 0.6, "c": 0.8, "d": 0.6})


def test_a_gain_that_all_users_share_has_no_interval_however_much_the_users_differ(tmp_path, first):
    other = write_run(tmp_path / "other", {user: value + 0.1 for user, value in {"a": 0.5, "b": 0.6, "c": 0.8}.items()})
    compared = compare([first, other])
    gain = compared.runs[1].difference.accuracy
    assert compared.users == ("a", "b", "c")
    assert (gain.low, gain.mean, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    assert compared.runs[1].accuracy.high - compared.runs[1].accuracy.low > 0.1
    assert "left out: 1 of first" in compared.remarks[0]


def test_users_count_as_helped_and_hurt_against_the_first_run_and_against_their_original(tmp_path, first):
    other = write_run(tmp_path / "other", {"a": 0.6, "b": 0.5, "c": 0.8, "d": 0.7}, macs=25.0, epochs=5)
    compared = compare([first, other])
    against_first, against_original = compared.runs[1].difference.change, compared.runs[1].against_original
    assert (against_first.helped, against_first.hurt, against_first.unchanged) == (0.5, 0.25, 0.25)
    assert (against_original.helped, against_original.hurt) == (0.5, 0.5)
    assert compared.runs[1].difference.gains == pytest.approx((0.1, -0.1, 0.0, 0.1))
    assert compared.runs[1].cost_fraction.mean == 0.25
    assert compared.runs[1].difference.mean_macs.mean == -25.0
    assert compared.settings == {"epochs": ("10", "5")}
    assert verdicts(compared) == (
        "Against first, other is neither clearly more accurate nor less, and costs 50 % less.",
    )


def test_the_interval_is_that_of_the_normal_approximation_for_many_users():
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    draws = np.random.default_rng(2).integers(400, size=(4000, 400))
    found = estimate(values, draws)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=5e-4)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dataset": "leaf"}, "first has dataset=parquet and other dataset=leaf"),
        ({"network": json.dumps({"num_classes": 9})}, "2 classes apart and that of other 9"),
        ({"num_test": 12}, "User a has 10 test samples in first and 12 in other"),
    ],
)
def test_runs_on_other_data_are_refused_with_the_reason(tmp_path, first, changed, reason):
    other = write_run(tmp_path / "other", {"a": 0.5, "b": 0.5}, **changed)
    with pytest.raises(ServerError, match=reason):
        compare([first, other])


def test_runs_of_other_users_are_refused(tmp_path, first):
    other = write_run(tmp_path / "other", {"a": 0.5})
    with pytest.raises(ServerError, match="1 users with a result in common"):
        compare([first, other])


def test_one_run_alone_or_twice_is_refused(first):
    with pytest.raises(ServerError, match="two run folders or more"):
        compare([first])
    with pytest.raises(ServerError, match="named twice"):
        compare([first, first])


def test_a_run_of_a_network_with_fewer_exits_leaves_the_others_out_of_its_row(tmp_path, fake_run):
    six, again = fake_run(1, users=5, name="six"), fake_run(1, users=5, name="[red]again")
    rows = next(table for table in tables_of(compare([six, again])) if table.title.startswith("Accuracy")).rows
    assert rows[0][1:] == rows[1][1:]
    assert len(rows[0]) == 8


def test_the_page_names_the_runs_as_text_and_is_the_same_each_time(tmp_path, fake_run):
    found = compare([fake_run(1, users=5, name="one"), fake_run(1, users=5, name="<b>$two$")])
    pages = [draw_comparison(found, tmp_path / name).read_bytes() for name in ("x", "y")]
    assert pages[0] == pages[1]
    assert b"&lt;b&gt;$two$" in pages[0]
    assert b"<b>" not in pages[0]
    names = {path.name for path in (tmp_path / "x" / "figures").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("accuracy-against-cost", "gains", "exits") for kind in ("png", "svg")
    }


def test_a_comparison_is_not_written_over_a_run(first, tmp_path, fake_run):
    found = compare([fake_run(1, users=5, name="one"), fake_run(1, users=5, name="two")])
    with pytest.raises(ServerError, match="holds a run"):
        draw_comparison(found, first.path)
