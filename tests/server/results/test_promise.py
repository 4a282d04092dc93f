"""What a run's policies promise and whether they kept it, on rows made by hand."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from persephonee.server.report.report_page import draw_report
from persephonee.server.results.promise import promise_text, summarise_promise
from persephonee.server.results.run_folder import RunFolder
from persephonee.server.results.table_schemas import read_table, table_path
from tests.server.results.test_run_folder import round_of

CONFIG = {"drop-tolerance": 0.01, "delta": 0.1}


def rows(**drops):
    return [
        {"rule": rule.replace("_", " "), "accuracy_original": 0.9, "accuracy_after": 0.9 - drop}
        for rule, of in drops.items()
        for drop in of
    ]


def test_users_who_lost_more_than_the_tolerance_are_counted_where_something_was_promised():
    found = summarise_promise(rows(controlled=(0.0, 0.01, 0.05, -0.02), paper=(0.3,)), CONFIG)
    assert found.rules == {"controlled": 4, "paper": 1}
    assert (found.promised, found.beyond) == (4, 1)
    assert found.mean_drop == pytest.approx(0.01)
    # the drops deviate by -1, 0, 4 and -3 points: sqrt(26 / 3) / sqrt(4)
    assert found.drop_error == pytest.approx(0.01472, abs=1e-5)
    text = promise_text(found)
    assert "the rule controlled chose the policy of 4 of 5 users: with probability 0.9" in text
    assert "the rule paper chose the policy of 1 of 5 users: no promise" in text
    assert "4 users with a promise lost 1.00 points on average against the original network (standard error" in text
    assert "1.47), and 1 of them lost more" in text
    against = promise_text(replace(found, reference="original"))
    assert "lose at most 1 point on average against the original network" in against


def test_where_the_original_network_answers_the_reason_is_said_and_nothing_is_counted():
    own = [{"rule": "original: too few calibration samples", "accuracy_original": 0.9, "accuracy_after": 0.9}]
    found = summarise_promise(own, CONFIG)
    assert (found.promised, found.mean_drop, found.beyond) == (0, None, 0)
    assert promise_text(found) == (
        "What is promised: too few calibration samples, so that the original network answers (for 1 of 1 users)."
    )


def test_tables_of_earlier_versions_are_read_without_a_rule_and_promise_nothing(tmp_path):
    run = RunFolder.create(tmp_path / "r", CONFIG)
    run.append_round(**round_of())
    path = table_path(run.path, "clients")
    pq.write_table(pq.read_table(path).drop_columns(["rule"]), path)
    assert read_table(run.path, "clients").column("rule").null_count == len(read_table(run.path, "clients"))
    assert summarise_promise(run.tables().clients_of(1), CONFIG) is None


def test_the_page_says_which_rule_chose_and_what_it_promises(tmp_path):
    run, one = RunFolder.create(tmp_path / "r", CONFIG), round_of()
    for row in one["clients"]:
        row["rule"] = "federated"
    run.append_round(**one)
    page = draw_report(run.path).read_text()
    assert "the rule federated chose the policy of" in page
    assert "is expected to lose at most 1 point against the last exit" in page
