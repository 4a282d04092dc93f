"""The table of the rules, on rows made by hand."""

import pandas as pd
import pytest

from persephonee.experiments.risk.experiment import table_of


def test_the_table_counts_users_beyond_the_tolerance_and_redraws_that_miss_the_promise():
    drops = {"paper": (0.5, 0.1, 0.0, 0.0), "controlled": (0.0, 0.0, 0.0, 0.0), "federated": (0.02, -0.02, 0.04, 0.0)}
    rows = [
        {"rule": rule, "redraw": i // 2, "user": i % 2, "drop": drop, "cost": 0.25}
        for rule, of in drops.items()
        for i, drop in enumerate(of)
    ]
    table = table_of(pd.DataFrame(rows), 0.01).set_index("rule")
    assert table.loc["paper", "drop"] == pytest.approx(15.0)
    assert table["violations"].to_dict() == {"paper": 0.5, "controlled": 0.0, "federated": 0.5}
    assert table["beyond"].to_dict() == {"paper": 0.5, "controlled": 0.0, "federated": 0.5}
    assert table.loc["paper", "worst_tenth"] == pytest.approx(25.0)
    assert table.loc["paper", "low"] == pytest.approx(5.0) and table.loc["paper", "high"] == pytest.approx(25.0)
    assert (table["redraws"] == 2).all() and (table["cost"] == 0.25).all()
