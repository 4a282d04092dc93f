"""From what the benchmarks measured to the figures that the page shows: medians, ranges, rates, ratios."""

from collections.abc import Mapping

import pandas as pd

from persephonee.benchmarks.result_tables import Result
from persephonee.benchmarks.simulation.baselines import OURS

Results = Mapping[str, Result]


def way_costs(result: Result) -> pd.DataFrame:
    """Return a row for each way and choice of exits: medians over the rounds of the means over the users.

    Columns: way, exits, seconds, low and high (the range over the rounds), peak_bytes, own_bytes (how far memory rose
    above what the process had when the way began), accuracy (NaN where training was not finished), limit_seconds (the
    plan's MACs over the rate of float32 matrix products), over_limit, steps, num_train.
    """
    table = result.tables["ways"].copy()
    table["limit_seconds"] = table.macs / table.float32_rate
    keys = ["way", "exits"]
    rounds = table.groupby([*keys, "round"], sort=False).mean(numeric_only=True).groupby(keys, sort=False)
    costs = rounds.median()
    costs["low"], costs["high"] = rounds.seconds.min(), rounds.seconds.max()
    # memory is what the neediest user takes
    costs[["peak_bytes", "own_bytes"]] = table.groupby(keys, sort=False)[["peak_bytes", "own_bytes"]].max()
    costs["over_limit"] = costs.seconds / costs.limit_seconds
    return costs.reset_index()


def way_cost(result: Result, method: str, exits: str, column: str) -> float | None:
    """Return one figure of `way_costs`; None where it was not measured."""
    costs = way_costs(result)
    found = costs[(costs.way == method) & (costs.exits == exits)]
    return None if found.empty or pd.isna(found[column].iloc[0]) else float(found[column].iloc[0])


def rates(result: Result) -> pd.DataFrame:
    """Return a row for each baseline and number of clients.

    Columns: name, schedule, head, kind ("rate" or "many"), clients, rate (clients per second, median over the
    repetitions), low and high (its range), start_seconds, accuracy.
    """
    table = result.tables["runs"]
    keys = ["name", "schedule", "head"]
    few = {row["name"]: row for row in table[table.kind == "few"].to_dict("records")}
    rows = []
    for (kind, *baseline), of in table[table.kind.isin(["rate", "many"])].groupby(["kind", *keys], sort=False):
        start = few[baseline[0]]
        measured = (of.clients - start["clients"]) / (of.seconds - start["seconds"])
        row = dict(zip(keys, baseline, strict=True))
        rate = float(measured.median())
        rows.append(
            {
                **row,
                "kind": kind,
                "clients": int(of.clients.iloc[0]),
                "rate": rate,
                "low": float(measured.min()),
                "high": float(measured.max()),
                "start_seconds": float(start["seconds"] - start["clients"] / rate),
                "accuracy": float(of.accuracy.mean()),
            }
        )
    return pd.DataFrame(rows)


def rate_of(result: Result, name: str, schedule: str, head: str = "msdnet") -> float | None:
    """Return a baseline's clients per second; None where it was not run."""
    table = rates(result)
    chosen = (table.name == name) & (table["schedule"] == schedule) & (table["head"] == head) & (table.kind == "rate")
    found = table[chosen]
    return None if found.empty else float(found.rate.iloc[0])


def flower_fractions(result: Result) -> pd.DataFrame:
    """Return, for each schedule, what Flower and Ray add to the round: a fraction of its seconds, median and range."""
    table = result.tables["runs"]
    ours = table[(table.kind == "rate") & (table.name == OURS) & (table["head"] == "msdnet")]
    both = ours.merge(table[table.kind == "loop"], on=["schedule", "repeat"], suffixes=("", "_loop"))
    both["share"] = 1 - both.seconds_loop / both.round_seconds
    both["outside_seconds"] = both.seconds - both.round_seconds
    found = both.groupby("schedule", sort=False).agg(
        clients=("clients", "first"),
        round_seconds=("round_seconds", "median"),
        loop_seconds=("seconds_loop", "median"),
        share=("share", "median"),
        low=("share", "min"),
        high=("share", "max"),
        outside_seconds=("outside_seconds", "median"),
    )
    return found.reset_index()


def ratio(first: float | None, second: float | None) -> float | None:
    """Return first / second, or None where one of them is missing."""
    return None if first is None or second is None or second <= 0 else first / second
