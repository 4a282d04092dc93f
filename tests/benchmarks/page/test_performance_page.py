"""The page: its figures are those of the tables, worked out by hand here; what is missing is named."""

import re

import pandas as pd
import pytest

from persephonee.benchmarks.benchmark_commands import FAILED, Outcome
from persephonee.benchmarks.page.numbers import flower_fractions, rate_of, rates, way_cost, way_costs
from persephonee.benchmarks.page.page import page_of
from persephonee.benchmarks.page.targets import TARGETS
from persephonee.benchmarks.result_tables import Result
from persephonee.benchmarks.simulation.baselines import FLOWER, OURS, PFL
from persephonee.benchmarks.simulation.scaling import straight_line, timed_in_turn
from persephonee.experiments.results_page.page_marks import written_part

MACHINE = {"processor": "A processor", "cores": 2, "threads": 1, "torch": "2.11"}
ABOUT = {"machine": MACHINE, "dataset": "writers", "backbone": "resnet50", "input_size": 224, "head": "msdnet"}


def methods() -> Result:
    """Full fine-tuning takes 100 s, the paper's way 20 s, ours fast 4 s, with 2, 1 and 0.25 GB of their own."""
    rows = []
    seconds = {"whole": 100.0, "paper": 20.0, "cached": 10.0, "fast": 4.0}
    own = {"whole": 2.0e9, "paper": 1.0e9, "cached": 0.5e9, "fast": 0.25e9}
    for method, taken in seconds.items():
        for number in range(3):
            row = {"way": method, "exits": "all exits", "round": number, "user": "u", "num_train": 512}
            measured = {
                "seconds": taken * (1, 2, 0.5)[number],
                "steps": 0,
                "accuracy": None if method == "whole" else 0.5,
            }
            memory = {"own_bytes": own[method], "peak_bytes": 1.0e9 + own[method]}
            rows.append({**row, **measured, **memory, "macs": 1e10, "float32_rate": 1e10, "bfloat16_rate": 2e10})
    about = {
        **ABOUT,
        "rounds": 3,
        "epochs": 10,
        "batch_size": 32,
        "steps": 3,
        "mmac": 4089.0,
        "model_samples": 600,
        "memory_budget": 10**9,
    }
    return Result(about, {"ways": pd.DataFrame(rows)})


def simulations() -> Result:
    """Ours: 10 s of start and 5 clients a second, 50 with the fast schedule; Flower 1 a second, pfl 2."""
    rows = []
    speeds = {(OURS, "paper"): 5.0, (OURS, "fast"): 50.0, (FLOWER, "paper"): 1.0, (PFL, "paper"): 2.0}
    for (name, schedule), speed in speeds.items():
        # ours starts once, by the fast schedule
        starts = [] if (name, schedule) == (OURS, "paper") else [("few", 4, 0)]
        for kind, clients, repeat in (*starts, ("rate", 100, 0), ("rate", 100, 1)):
            in_round = clients / speed + 2 if name == OURS else None
            who = {"name": name, "schedule": schedule, "head": "msdnet", "clients": clients, "accuracy": 0.75}
            took = {"seconds": 10 + clients / speed, "round_seconds": in_round}
            rows.append({"kind": kind, "repeat": repeat, **who, **took})
    for repeat in range(2):
        loop = {"kind": "loop", "repeat": repeat, "name": "plain loop", "schedule": "paper", "head": "msdnet"}
        rows.append({**loop, "clients": 100, "accuracy": 0.75, "seconds": 20.0 - repeat, "round_seconds": None})
    about = {**ABOUT, "repeats": 2, "sizes": {"few": 4}, "skipped": ["pooled, by name"]}
    return Result(about, {"runs": pd.DataFrame(rows)})


def test_costs_are_medians_over_the_rounds_with_their_range():
    costs = way_costs(methods()).set_index("way")
    assert tuple(costs.loc["whole", ["seconds", "low", "high"]]) == (100.0, 50.0, 200.0)
    assert costs.loc["fast", "own_bytes"] == 0.25e9
    assert costs.loc["fast", "limit_seconds"] == 1.0
    assert costs.loc["fast", "over_limit"] == 4.0
    assert way_cost(methods(), "whole", "all exits", "accuracy") is None
    assert way_cost(methods(), "fast", "exit 0", "seconds") is None


def test_rates_leave_out_the_start():
    table = rates(simulations()).set_index(["name", "schedule"])
    assert table.loc[(FLOWER, "paper"), "rate"] == pytest.approx(1.0)
    assert table.loc[(FLOWER, "paper"), "start_seconds"] == pytest.approx(10.0)
    assert rate_of(simulations(), OURS, "fast") == pytest.approx(50.0)
    # 96 users more in 20 - 0.08 s more
    assert rate_of(simulations(), OURS, "paper") == pytest.approx(96 / 19.92)
    assert rate_of(simulations(), OURS, "fast", "pooled") is None


def test_flower_s_fraction_is_what_the_round_takes_over_the_plain_loop():
    row = flower_fractions(simulations()).iloc[0]
    # rounds of 22 s against loops of 20 and 19 s
    assert row.share == pytest.approx((2 / 22 + 3 / 22) / 2)
    assert row.outside_seconds == pytest.approx(8.0)


def test_a_target_is_met_missed_by_so_much_or_not_measured():
    results = {"personalisation-resnet50-224": methods(), "simulation": simulations()}
    found = {target.name: target.verdict(results) for target in TARGETS}
    assert found["paper-way"] == ("5x", "met")
    assert found["whole"] == ("25x", "met")
    assert found["memory-ratio"] == ("8x", "met")
    assert found["memory-budget"] == ("250 MB", "met")
    assert found["whole-exit-0"] == ("not measured", "-")
    assert found["fast-flower"] == ("50x", "met")
    assert found["paper-pfl"] == ("2.41x", "met")
    assert found["flower-share"] == ("11.4%", "missed by a factor of 1.14")
    assert found["population"] == ("not measured", "-")


def test_a_goal_that_is_missed_tells_how_much_better_it_would_have_to_be():
    whole = next(target for target in TARGETS if target.name == "whole")
    slow = methods()
    slow.tables["ways"].loc[slow.tables["ways"].way == "fast", "seconds"] *= 2
    assert whole.verdict({"personalisation-resnet50-224": slow}) == ("12.5x", "missed by a factor of 1.60")


def test_the_page_holds_tables_figures_and_what_is_missing_and_keeps_what_a_person_wrote(tmp_path):
    results = {"personalisation-resnet50-224": methods(), "simulation": simulations()}
    failed = Outcome(name="device", state=FAILED, reason="no model")
    page = page_of(results, [failed], tmp_path / "images", "The machine was busy.")
    assert written_part(page) == "The machine was busy."
    assert written_part("a page without marks") == ""
    assert "| Flower's and Ray's fraction of a round | at most 10.0% | 11.4% | missed by a factor of 1.14 |" in page
    assert "- device: failed, no model" in page
    assert "Left out: pooled, by name" in page
    assert "| ours, fast | all exits | 4 | 2 to 8 | 25.0x | 1250 | 250 | 50.0% | 4.0 |" in page
    assert "| full fine-tuning | the whole network | 100 | 50 to 200 | 1.0x | 3000 | 2000 | - | 100.0 |" in page
    assert "## Inference" not in page
    for image in re.findall(r"!\[[^]]*\]\(images/([^)]+)\)", page):
        assert (tmp_path / "images" / image).stat().st_size > 1000


def test_sizes_are_timed_in_turn_after_a_warm_up_of_the_smallest():
    calls: list[int] = []
    rows = timed_in_turn({1: lambda: calls.append(1), 2: lambda: calls.append(2)}, repeats=2)
    assert calls == [1, 1, 2, 1, 2]
    assert [(row["size"], row["repeat"]) for row in rows] == [(1, 0), (2, 0), (1, 1), (2, 1)]


def test_a_straight_line_has_no_residual_and_a_bent_one_has():
    sizes = pd.Series([1.0, 2.0, 3.0]).to_numpy()
    assert straight_line(sizes, 2 * sizes + 1) == pytest.approx((2, 1, 0), abs=1e-9)
    # the line through 0, 0, 3 is 1.5 x - 2, and its middle value 1
    assert straight_line(sizes, pd.Series([0.0, 0.0, 3.0]).to_numpy()) == pytest.approx((1.5, -2, 1 / 3))
