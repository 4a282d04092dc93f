"""The figure of the rules, on users made by hand: the table of their candidates, and what each rule makes of it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from persephonee.clients.personalisation.risk.risk_curves import UNIT, candidate_policies
from persephonee.experiments.beyond.figure_risk import draw, table
from persephonee.experiments.studies.risk_tables import curve_of

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
                "user": f"u{user:03d}", "scheme": "hard labels", "candidate": np.arange(COUNT), "half": half,
                "samples": 20, "believed": lost, "lost": lost, "cost": costs, "test_drop": lost / UNIT / 20,
                "test_cost": costs / 1000,
            }
        )
        for user in range(users)
        for half in (0, 1)
    ]  # fmt: skip
    policies = pd.DataFrame(
        {
            "user": [f"u{user:03d}" for user in range(users)], "scheme": "hard labels", "accuracy_original": 0.9,
            "accuracy_after": 0.85, "mean_macs": 25.0, "original_macs": 100, "kept_0": True, "kept_1": False,
            "kept_2": True,
        }
    )  # fmt: skip
    study = SimpleNamespace(schemes=("hard labels", "self-supervision"), title="made up")
    return SimpleNamespace(study=study, risks=pd.concat(rows), policies=policies, network=SimpleNamespace(num_exits=2))


def test_the_rules_find_the_candidate_that_loses_nothing_where_the_papers_choice_loses_five_points():
    found = table(made_up(200)).set_index("rule")
    assert found.users.to_dict()["paper"] == found.users.to_dict()["federated"] == 200
    assert found.loc["paper", "drop_points"] == pytest.approx(5)
    assert found.loc["paper", "beyond"] == 1 and found.loc["paper", "cost"] == 0.25
    for rule in ("controlled", "federated"):
        assert found.loc[rule, "drop_points"] == 0 and found.loc[rule, "original"] == 0
        assert found.loc[rule, "cost"] == pytest.approx(0.333)


def test_too_few_users_to_promise_anything_keep_the_original_network():
    found = table(made_up(3)).set_index("rule")
    for rule in ("controlled", "federated"):
        assert (found.loc[rule, "cost"], found.loc[rule, "original"]) == (1, 1)
    assert [claim.same_direction for claim in draw(made_up(3)).claims] == [False, True, True]


def test_a_curve_comes_back_from_its_rows():
    rows = made_up(1).risks
    curve = curve_of(rows.sample(frac=1, random_state=0), "lost")
    assert curve.samples == (20, 20)
    np.testing.assert_array_equal(curve.excess[1], rows[rows.half == 1].lost)
