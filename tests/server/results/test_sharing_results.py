import io
import json
from dataclasses import asdict

import pytest
from rich.console import Console

from persephonee.server.errors import ServerError
from persephonee.server.report.report_page import draw_report
from persephonee.server.results.results import summarise
from persephonee.server.results.run_folder import RunFolder
from persephonee.server.results.terminal_table import print_summary

CLIENT = {"status": "ok", "threshold": 0.5, "accuracy_original": 0.9, "accuracy_before": 0.6, "accuracy_after": 0.8}
COSTS = {"mean_macs": 50.0, "mean_macs_before": 60.0, "original_macs": 100, "rolled_back_exits": [], "num_test": 10}


def accepted(number, clients=("a", "b", "c")):
    rows = [
        {"round": number, "client_id": client, "exit": exit, "stage": stage, "accuracy": 0.5, "num_test": 10}
        for client in clients
        for exit in (0, 1, 2)
        for stage in ("before", "after")
    ]
    return {
        "exits": rows,
        "clients": [{**CLIENT, **COSTS, "round": number, "client_id": client} for client in clients],
        "round_row": {"round": number, "replies": len(clients), "failures": 0},
    }


def shared(number, **outcomes):
    return [
        {
            "round": number,
            "client_id": client,
            "outcome": outcome,
            "exits": [0, 1] if outcome == "shared" else [],
            "examples": 7 if outcome == "shared" else None,
        }
        for client, outcome in outcomes.items()
    ]


def held_out(number, stage, **accuracies):
    return [
        {"round": number, "client_id": client, "status": "ok", "exit": exit, "stage": stage, "accuracy": accuracy}
        for client, values in accuracies.items()
        for exit, accuracy in enumerate(values)
    ]


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder.create(tmp_path / "run", {"seed": 0})
    first = held_out(0, "before", x=(0.2, 0.5, 0.9), y=(0.4, 0.5, 0.7)) + held_out(0, "after", x=(0.5, 0.6, 0.9))
    first += held_out(1, "before", x=(0.4, 0.5, 0.9), y=(0.6, 0.5, 0.7))
    first += [{"round": 0, "client_id": "z", "status": "too small: z has 3 samples"}]
    refused = shared(1, a="shared", b="refused: exits/0.parameters: a value is not finite.", c="shared")
    run.append_round(**accepted(1), sharing=refused, held_out=first)
    last = held_out(2, "before", x=(0.6, 0.4, 0.9), y=(0.8, 0.5, 0.7)) + held_out(2, "after", x=(0.9, 0.7, 0.9))
    outcomes = shared(2, a="shared", b="not permitted", c="held back: training improved no exit")
    run.append_round(**accepted(2), sharing=outcomes, held_out=last)
    return run


def test_who_shared_is_counted_and_refusals_of_every_round_are_named(run):
    sharing = summarise(run.tables()).sharing
    assert (sharing.shared, sharing.not_permitted, sharing.held_back, sharing.refused) == (1, 1, 1, 0)
    assert sharing.exits == (1, 1)
    assert [entry.client_id for entry in sharing.refusals] == ["b"]
    assert sharing.refusals[0].status.startswith("round 1: refused: exits/0.parameters")


def test_the_curve_on_held_out_users_is_as_worked_out_on_paper(run):
    found = summarise(run.tables()).held_out
    assert found.users == 2
    assert [point.round for point in found.rounds] == [0, 1, 2]
    assert [point.accuracy for point in found.rounds] == [
        pytest.approx(values) for values in ((0.3, 0.5, 0.8), (0.5, 0.5, 0.8), (0.7, 0.45, 0.8))
    ]
    first = found.exits[0]
    assert (first.initial_before, first.initial_after) == (pytest.approx(0.3), 0.5)
    assert (first.merged_before, first.merged_after) == (pytest.approx(0.7), 0.9)
    assert [(entry.client_id, entry.status) for entry in found.left_out] == [("z", "too small: z has 3 samples")]
    json.dumps(asdict(found), allow_nan=False)


def test_rows_of_a_round_that_was_not_completed_do_not_count(run):
    rounds = run.path / "rounds.parquet"
    kept = rounds.read_bytes()
    run.append_round(**accepted(3), sharing=shared(3, a="shared"), held_out=held_out(3, "before", x=(1.0, 1.0, 1.0)))
    rounds.write_bytes(kept)
    found = summarise(run.tables())
    assert [point.round for point in found.held_out.rounds] == [0, 1, 2]
    assert found.sharing.not_permitted == 1
    run.append_round(**accepted(3), sharing=shared(3, a="shared"))
    assert [point.round for point in summarise(run.tables()).held_out.rounds] == [0, 1, 2]


def test_the_report_and_the_terminal_show_both_and_what_noise_covers_them(run):
    (run.path / "privacy.json").write_text(json.dumps({"words": "epsilon 3.14 at delta 1e-05"}))
    page = draw_report(run.path).read_text()
    assert "On 2 users who took no part, 2 rounds took exit 0 from 30.0" in page
    assert "1 clients shared exits, 1 do not permit it" in page
    assert "epsilon 3.14" in page
    assert (run.path / "figures" / "held_out.svg").exists()
    text = io.StringIO()
    print_summary(summarise(run.tables()), Console(file=text, width=100))
    assert "2 users who took no part" in text.getvalue()
    assert "left out: b: round 1: refused" in text.getvalue()
    (run.path / "privacy.json").write_text("{")
    with pytest.raises(ServerError, match=r"privacy\.json is not whole"):
        draw_report(run.path)


def test_a_run_without_either_says_nothing_of_it(tmp_path):
    run = RunFolder.create(tmp_path / "plain", {"seed": 0})
    run.append_round(**accepted(1))
    summary = summarise(run.tables())
    assert summary.sharing is None and summary.held_out is None
    assert "Shared exits" not in draw_report(run.path).read_text()
