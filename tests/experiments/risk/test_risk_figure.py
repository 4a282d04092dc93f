"""The figure of the rules, on users made by hand: the table of their candidates, and what each rule makes of it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from persephonee.clients.personalisation.risk.risk_curves import UNIT, candidate_policies
from persephonee.experiments.beyond.figure_risk import draw, table
from persephonee.experiments.studies.risk_tables import curve_of
from persephonee.experiments.studies.rule_outcomes import rule_outcomes

COUNT = len(candidate_policies(2))


def made_up(users):
    """Return users of whom candidate 3 costs a third and loses nothing, and the others lose a tenth of all samples."""
    lost = np.full(COUNT, 2 * UNIT)
    lost[3] = 0
    costs = np.full(COUNT, 300)
    costs[3] = 333
    rows = [
        pd.DataFrame(
            {
                "user": f"u{user:03d}", "scheme": "hard labels", "reference": "last exit",
                "candidate": np.arange(COUNT), "half": half,
                "samples": 20, "believed": lost, "lost": lost, "cost": costs, "test_drop": lost / UNIT / 20,
                "test_accuracy": 0.9 - lost / UNIT / 20, "test_cost": costs / 1000, "rate_0": 0.5, "rate_1": 0.0,
                "rate_2": 0.5,
            }
        )
        for user in range(users)
        for half in (0, 1)
    ]  # fmt: skip
    policies = pd.DataFrame(
        {
            "user": [f"u{user:03d}" for user in range(users)], "scheme": "hard labels", "accuracy_original": 0.9,
            "accuracy_after": 0.85, "mean_macs": 25.0, "original_macs": 100, "kept_0": True, "kept_1": False,
            "kept_2": True, "rate_0": 0.5, "rate_1": 0.0, "rate_2": 0.5,
        }
    )  # fmt: skip
    last = pd.DataFrame(
        {"user": policies.user, "scheme": "hard labels", "exit": 2, "whole": True, "before": 0.9, "after": 0.9}
    )
    # the first exit takes 3 of 10 ms, and half of the samples leave there
    latency = pd.DataFrame({"exit": [0, 1, 2], "stage_ms": [2.0, 3.0, 5.0], "head_ms": [1.0, 1.0, 0.0]})
    study = SimpleNamespace(schemes=("hard labels", "self-supervision"), title="made up")
    network = SimpleNamespace(num_exits=2)
    return SimpleNamespace(
        study=study, risks=pd.concat(rows), policies=policies, exits=last, latency=latency, network=network
    )


def test_the_rules_find_the_candidate_that_loses_nothing_where_the_papers_choice_loses_five_points():
    found = table(made_up(200)).set_index("rule")
    assert found.users.to_dict()["paper"] == found.users.to_dict()["federated"] == 200
    assert found.loc["paper", "drop_points"] == pytest.approx(5)
    assert found.loc["paper", "beyond"] == 1 and found.loc["paper", "cost"] == 0.25
    for rule in ("controlled", "federated"):
        assert found.loc[rule, "drop_points"] == 0 and found.loc[rule, "original"] == 0
        assert found.loc[rule, "cost"] == pytest.approx(0.333)


def test_a_policy_takes_the_time_of_the_stages_and_the_heads_in_use_on_the_way():
    users = rule_outcomes(made_up(8), "hard labels")["paper"]
    # 3 ms for those who leave at once, 11 for the others, of 10
    assert users.latency.tolist() == pytest.approx([(0.5 * 3 + 0.5 * 11) / 10] * 8)
    assert users.accuracy.tolist() == [0.85] * 8 and users.reference.tolist() == [0.9] * 8


def test_too_few_users_to_promise_anything_keep_the_original_network():
    found = table(made_up(3)).set_index("rule")
    for rule in ("controlled", "federated"):
        assert (found.loc[rule, "cost"], found.loc[rule, "original"]) == (1, 1)
    assert [claim.verdict for claim in draw(made_up(3)).claims] == ["does not hold", "holds", "holds"]


def test_a_curve_comes_back_from_its_rows():
    rows = made_up(1).risks
    curve = curve_of(rows.sample(frac=1, random_state=0), "lost")
    assert curve.samples == (20, 20)
    np.testing.assert_array_equal(curve.excess[1], rows[rows.half == 1].lost)
