"""The sections of docs/performance.md on what personalisation costs, how fast users are simulated, how costs grow."""

import pandas as pd

from persephonee.benchmarks.page.markdown import machine_line, table_of
from persephonee.benchmarks.page.numbers import flower_fractions, rates, way_costs
from persephonee.benchmarks.result_tables import Result
from persephonee.benchmarks.simulation.scaling import straight_line

WAY_NAMES = {
    "whole": "full fine-tuning",
    "paper": "the paper's way",
    "cached": "ours, the paper's schedule",
    "fast": "ours, fast",
}


def cost_section(result: Result, figure: str) -> str:
    """Return the section on one network's personalisation; `figure` is its file as the page names it."""
    about, costs = result.about, way_costs(result)
    whole = costs[costs.way == "whole"].seconds.iloc[0]
    rows = [
        [
            WAY_NAMES[row["way"]],
            "the whole network" if row["way"] == "whole" else row["exits"],
            f"{row['seconds']:.3g}",
            f"{row['low']:.3g} to {row['high']:.3g}",
            f"{whole / row['seconds']:.1f}x",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['own_bytes'] / 1e6:.0f}",
            "-" if pd.isna(row["accuracy"]) else f"{row['accuracy']:.1%}",
            f"{row['over_limit']:.1f}",
        ]
        for row in costs.to_dict("records")
    ]
    header = ["way", "trained", "seconds a user", f"range of {about['rounds']}", "against full fine-tuning"]
    header += ["peak, MB", "of it the way's own, MB", "accuracy", "times the arithmetic limit"]
    return "\n".join(
        [
            f"### {about['backbone']} at {about['input_size']} px, {about['dataset']}\n",
            f"{machine_line(about)}. {costs.num_train.iloc[0]:.0f} training samples a user on average, "
            f"{about['epochs']} epochs in batches of {about['batch_size']}, {about['mmac']:.0f} MMAC an image, "
            f"`{about['head']}` heads that had learned from {about['model_samples'] or 'some'} samples, all "
            f"samples labelled. {_how_long(about['steps'])}{_budget(about['memory_budget'])}\n",
            table_of(header, rows),
            f"![Time and memory of {about['backbone']} at {about['input_size']} px]({figure})\n",
        ]
    )


def _how_long(steps: int | None) -> str:
    if steps is None:
        return "Every way ran to its end."
    return (
        f"Full fine-tuning and the paper's way were timed on {steps} steps (the median, after one that is not counted) "
        "and scaled to all passes of the schedule, so they have no accuracy of their own; the paper's way ends with "
        "the same exits as ours with its schedule, since a frozen backbone gives the same features in every epoch. The "
        "other ways ran to their end."
    )


def _budget(budget: int | None) -> str:
    return f" Our ways had a budget of {budget / 1e6:,.0f} MB for features and training." if budget else ""


def simulation_section(result: Result, figure: str) -> str:
    """Return the section on the simulation."""
    about, table = result.about, rates(result)
    rows = [
        [
            row["name"],
            f"`{row['head']}`",
            row["schedule"],
            row["clients"],
            f"{row['rate']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['start_seconds']:.0f}",
            f"{row['accuracy']:.1%}",
        ]
        for row in table.to_dict("records")
    ]
    header = ["simulator", "heads", "schedule", "clients", "clients a second", "range", "start, s", "accuracy"]
    shares = [
        [
            row["schedule"],
            row["clients"],
            f"{row['round_seconds']:.1f}",
            f"{row['loop_seconds']:.1f}",
            f"{row['share']:.1%}",
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"{row['outside_seconds']:.1f}",
        ]
        for row in flower_fractions(result).to_dict("records")
    ]
    times = "once" if about["repeats"] == 1 else f"{about['repeats']} times"
    share_header = ["schedule", "clients", "round, s", "plain loop, s", "Flower's and Ray's share", "range"]
    return "\n".join(
        [
            "## Simulation\n",
            "`python -m persephonee.benchmarks.simulation.benchmark`: "
            f"{about['dataset']}, one process with one thread for each core, all "
            f"samples labelled. {machine_line(about)}. The baselines run in turn, {times}. A rate is "
            f"what more clients cost over a run with {about['sizes']['few']}, ours by the fast schedule; the start is "
            "what is left of that run. "
            "Accuracy is the mean over the early exits, all test samples together.\n",
            *(f"Left out: {line}\n" for line in about["skipped"]),
            table_of(header, rows),
            f"![Clients per second]({figure})\n",
            "What Flower and Ray add to the same calls of `personalise` in a plain loop, one process per core; the "
            "last column is what a run takes outside of its round, from the command to the report:\n",
            table_of([*share_header, "outside of the round, s"], shares),
        ]
    )


def scaling_section(result: Result, figure: str) -> str:
    """Return the section on how the cost grows."""
    about, rows = result.about, []
    for kind, of in result.tables["seconds"].groupby("kind", sort=False):
        seconds = of.groupby("size").seconds.median()
        slope, intercept, residual = straight_line(seconds.index.to_numpy(float), seconds.to_numpy())
        shown = ", ".join(f"{size}: {value:.2f}" for size, value in seconds.items())
        rows.append([kind, shown, f"{slope:.4g}", f"{intercept:.3g}", f"{residual:.1%}"])
    return "\n".join(
        [
            "## Growth\n",
            "`python -m persephonee.benchmarks.simulation.scaling`: "
            f"{about['backbone']}, `{about['head']}` heads, {about['dataset']}, "
            f"the paper's schedule, medians of {about['repeats']} repetitions in turn after a warm-up; a user has "
            f"{about['samples_where_exits_vary']} samples where the exits vary. {machine_line(about)}. The residual is "
            "the largest distance from the straight line over the largest value.\n",
            table_of(["against", "seconds", "slope, s", "intercept, s", "largest residual"], rows),
            f"![Growth of the cost]({figure})\n",
        ]
    )


def gpu_section(result: Result) -> str:
    """Return the section on a whole population on a GPU."""
    about, rows = result.about, []
    for schedule, of in result.tables["population"].groupby("schedule", sort=False):
        users, seconds = int(of.users.iloc[0]), of.seconds.median()
        rows.append(
            [
                users,
                schedule,
                f"{seconds:.1f}",
                f"{of.seconds.min():.1f} to {of.seconds.max():.1f}",
                f"{users / seconds:.1f}",
                f"{of.share.median():.1%}",
                f"{of.accuracy.mean():.1%}",
            ]
        )
    header = ["users", "schedule", "seconds", f"range of {about['repeats']}", "users a second"]
    header += ["fraction of the matrix rate", "accuracy"]
    return "\n".join(
        [
            "## A population on a GPU\n",
            "`python -m persephonee.benchmarks.simulation.gpu_population --device cuda`: "
            f"{about['dataset']}, {about['backbone']}, "
            f"`{about['head']}` heads, batchs of {about['batch']} users, who had enough samples to take part. "
            f"{machine_line(about)}. Whole rounds, from images in memory to reports, after an uncounted batch; "
            f"the rate of float32 matrix products is {about['float32_rate'] / 1e12:.1f} TMAC/s.\n",
            table_of(header, rows),
        ]
    )
