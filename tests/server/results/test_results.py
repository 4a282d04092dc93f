import dataclasses
import json

import pytest

from persephonee.server.errors import ServerError
from persephonee.server.results.results import summarise
from persephonee.server.results.summary import Change, Spread, Summary
from persephonee.server.results.summary_text import headline, headline_exit
from persephonee.server.results.table_schemas import RunTables, make_table

# Worked out on paper. One early exit and the last one; the backbone costs 100, the exit sits at 40, its head costs 10.
#        exit 0        last          policy          threshold   leaves at 0      mean cost
# user   before after  before=after  before  after   thr_conf    before  after    before              after
#  ann   .50    .90    .80           .70     .90     .60         .2      .8       .2*50 + .8*110 = 98   62
#  bob   .60    .60    .80           .70     .70     .80         .4      .4       .4*50 + .6*110 = 86   86
#  cem   .70    .60    .80           .80     .70     .90         .6      pruned   .6*50 + .4*110 = 74  100
USERS = {
    "ann": {
        "exit": (0.5, 0.9),
        "policy": (0.7, 0.9),
        "threshold": 0.6,
        "rate": (0.2, 0.8),
        "kept": True,
        "macs": (98, 62),
    },
    "bob": {
        "exit": (0.6, 0.6),
        "policy": (0.7, 0.7),
        "threshold": 0.8,
        "rate": (0.4, 0.4),
        "kept": True,
        "macs": (86, 86),
    },
    "cem": {
        "exit": (0.7, 0.6),
        "policy": (0.8, 0.7),
        "threshold": 0.9,
        "rate": (0.6, 0.0),
        "kept": False,
        "macs": (74, 100),
    },
}
LEFT_OUT = {"dee": "too small: 8 samples", "eve": "refused: NaN in the loss", "fay": "failed: error code 8"}


def tables_of(users=USERS, left_out=LEFT_OUT, failures=3, rounds=(1,)) -> RunTables:
    exits, clients = [], []
    for name, user in users.items():
        for stage in (0, 1):
            common = {"round": rounds[-1], "client_id": name, "stage": ("before", "after")[stage], "num_test": 10}
            kept = user["kept"] or stage == 0
            early, late = user["rate"][stage], 1 - user["rate"][stage]
            exits.append(
                {**common, "exit": 0, "accuracy": user["exit"][stage], "exit_rate": early, "kept": kept, "macs": 50}
            )
            exits.append({**common, "exit": 1, "accuracy": 0.8, "exit_rate": late, "kept": True, "macs": 100})
        clients.append(
            {
                "round": rounds[-1],
                "client_id": name,
                "status": "ok",
                "labels": "all",
                "threshold": user["threshold"],
                "accuracy_original": 0.8,
                "accuracy_before": user["policy"][0],
                "accuracy_after": user["policy"][1],
                "mean_macs": user["macs"][1],
                "mean_macs_before": user["macs"][0],
                "original_macs": 100,
                "bytes_up": 1000,
                "bytes_down": 500,
                "rolled_back_exits": [0] if name == "bob" else [],
            }
        )
    clients += [{"round": rounds[-1], "client_id": name, "status": why} for name, why in left_out.items()]
    round_rows = [{"round": number, "replies": len(users) + 1, "failures": failures} for number in rounds]
    return RunTables(
        exits=make_table("exits", exits),
        clients=make_table("clients", clients),
        rounds=make_table("rounds", round_rows),
    )


@pytest.fixture
def summary() -> Summary:
    return summarise(tables_of())


def test_each_exit_is_as_worked_out_on_paper(summary):
    first, last = summary.exits
    assert first.accuracy_before.mean == pytest.approx(0.6)
    assert first.accuracy_before.median == pytest.approx(0.6)
    assert first.accuracy_after.mean == pytest.approx(0.7)
    assert first.accuracy_after.median == pytest.approx(0.6)
    assert (first.change.helped, first.change.unchanged, first.change.hurt) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert first.reaches_original == pytest.approx(1 / 3)
    assert first.kept == pytest.approx(2 / 3)
    assert (first.exit_rate_before, first.exit_rate_after) == pytest.approx((0.4, 0.4))
    assert (first.macs, first.cost_fraction) == (50, 0.5)
    assert first.rolled_back == 1
    assert last.is_last and not first.is_last
    assert last.change.unchanged == 1.0
    assert (last.macs, last.cost_fraction) == (100, 1.0)


def test_the_policy_is_as_worked_out_on_paper(summary):
    policy = summary.policy
    assert policy.accuracy_before.mean == pytest.approx(2.2 / 3)
    assert policy.accuracy_after.mean == pytest.approx(2.3 / 3)
    assert policy.accuracy_original.mean == pytest.approx(0.8)
    assert (policy.change.helped, policy.change.hurt) == pytest.approx((1 / 3, 1 / 3))
    assert (policy.against_original.helped, policy.against_original.hurt) == pytest.approx((1 / 3, 2 / 3))
    assert policy.mean_macs_before == pytest.approx((98 + 86 + 74) / 3)
    assert policy.mean_macs_after == pytest.approx((62 + 86 + 100) / 3)
    assert policy.cost_fraction_after.mean == pytest.approx(2.48 / 3)
    assert policy.threshold.median == 0.8
    assert policy.threshold_counts == {"0.60": 1, "0.80": 1, "0.90": 1}
    assert policy.exits_kept.mean == pytest.approx(2 / 3)


def test_everybody_who_was_left_out_is_counted_and_named(summary):
    counts = summary.counts
    # asked: six with a name, and one of the 4 + 3 answers and failures that has none
    assert dataclasses.astuple(counts) == (7, 3, 1, 1, 2)
    assert {entry.client_id: entry.status for entry in summary.left_out} == LEFT_OUT
    assert [(entry.client_id, entry.exits) for entry in summary.rolled_back] == [("bob", (0,))]


def test_a_run_without_a_valid_user_has_a_summary_that_says_so():
    summary = summarise(tables_of(users={}))
    assert summary.exits == () and summary.counts.ok == 0
    assert headline(summary).startswith(
        "No user gave a valid result: of 4 clients asked, 1 too small, 1 refused, 2 fail"
    )


def test_a_run_without_a_round_is_refused():
    with pytest.raises(ServerError, match="completed no round"):
        summarise(RunTables(**{name: make_table(name, []) for name in ("exits", "clients", "rounds")}))


def test_the_summary_is_json(summary):
    assert json.loads(json.dumps(dataclasses.asdict(summary), allow_nan=False))["counts"]["ok"] == 3


def test_spread_ignores_what_is_missing():
    spread = Spread.of([0.0, None, 1.0, 0.5])
    assert (spread.users, spread.mean, spread.median) == (3, 0.5, 0.5)
    assert (spread.p05, spread.p25, spread.p95) == pytest.approx((0.05, 0.25, 0.95))
    assert Spread.of([None]) is None


def test_accuracies_that_differ_by_rounding_only_are_unchanged():
    change = Change.between([(0.1 + 0.2, 0.3), (None, 0.3)])
    assert (change.users, change.unchanged) == (1, 1.0)


def test_the_headline_says_when_no_exit_reaches_the_original(summary):
    words = headline(summary).replace("\N{NO-BREAK SPACE}", " ")
    assert "No early exit reaches the original network's 80.0 % on average; exit 0 comes closest with 70.0 %" in words
    assert "more accurate than before for 1 of 3 users and less accurate for 1" in words
    assert (
        "the whole policy reaches 76.7 % (73.3 % before personalisation; the original network 80.0 %) at 83 % of the "
        "original's cost" in words
    )
    assert "4 of 7 clients asked, 1 too small, 1 refused, 2 failed" in words


def test_the_headline_names_the_cheapest_exit_that_reaches_the_original():
    better = {name: {**user, "exit": (0.5, 0.85)} for name, user in USERS.items()}
    summary = summarise(tables_of(users=better, left_out={}, failures=0))
    assert headline_exit(summary).exit == 0
    words = headline(summary).replace("\N{NO-BREAK SPACE}", " ")
    assert words.startswith("With each user's own threshold")
    assert "Alone, exit 0 now reaches 85.0 % on average (50.0 % before personalisation; the original network " in words
    assert "at 50 % of the original's cost; it is more accurate than before for all 3 users." in words


def test_the_curve_has_a_point_for_each_round():
    summary = summarise(tables_of(rounds=(1, 2, 3)))
    assert [point.round for point in summary.rounds] == [1, 2, 3] and summary.round == 3
