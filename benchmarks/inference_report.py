"""The report of `benchmarks.inference`: a page in Markdown, its tables as CSV, and the figure."""

import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from matplotlib.figure import Figure

from multi_exit.atomic_files import write_text_atomically


def write_report(out: Path, tables: Mapping[str, pd.DataFrame], threads: int, repeats: int) -> None:
    """Write inference.md, latency_against_macs.png and a CSV file for each of overhead, speed and latency."""
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_text_atomically(out / f"{name}.csv", table.to_csv(index=False))
    correlation = _correlation(tables["latency"])
    _draw_latency(tables["latency"], correlation, out / "latency_against_macs.png")
    sections = [
        "# Personal inference\n",
        f"`python -m benchmarks.inference {shlex.join(sys.argv[1:])}`\n",
        f"{platform.processor() or platform.machine()}, {threads} thread{'s' if threads > 1 else ''}, PyTorch "
        f"{torch.__version__}, ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}. The two "
        f"sides of each ratio are timed in turn in the same run, medians over {repeats} repetitions (overhead: 300) "
        "after 3 warm-up passes.\n",
        "## The engine against the same stages and heads by hand, batch 1\n",
        _overhead(tables["overhead"]),
        "## The calibrated policy against the original network, medians over the users\n",
        _speed(tables["speed"]),
        f"## Latency against MACs, batch 1, one exit in use (Pearson's r = {correlation:.3f})\n",
        _latency(tables["latency"]),
        "![Latency against MACs](latency_against_macs.png)\n",
    ]
    write_text_atomically(out / "inference.md", "\n".join(sections))


def _overhead(table: pd.DataFrame) -> str:
    rows = [
        [
            _exit_name(row["exit"], len(table)),
            f"{row['heads_run']}",
            f"{row['by_hand_ms']:.3f}",
            f"{row['engine_ms']:.3f}",
            f"{row['overhead']:+.1%}",
            f"{row['overhead_q25']:+.1%} to {row['overhead_q75']:+.1%}",
        ]
        for row in table.to_dict("records")
    ]
    return _markdown(["exit", "heads run", "by hand, ms", "engine, ms", "overhead", "quartiles"], rows)


def _speed(table: pd.DataFrame) -> str:
    rows = []
    for (labels, runtime, batch), of in table.groupby(["labels", "runtime", "batch"], sort=False):
        rows.append(
            [
                str(labels),
                str(runtime),
                str(batch),
                f"{of['original_ms'].median():.3f}",
                f"{of['policy_ms'].median():.3f}",
                f"**{of['speed_up'].median():.2f}x**",
                f"{of['speed_up'].min():.2f} to {of['speed_up'].max():.2f}",
                f"{of['accuracy_original'].mean():.1%}",
                f"{of['accuracy'].mean():.1%}",
                f"{of['left_early'].mean():.0%}",
                str(len(of)),
            ]
        )
    header = ["labels", "runtime", "batch", "original, ms an image", "policy, ms an image", "speed-up", "of the users"]
    return _markdown([*header, "accuracy of the original", "of the policy", "left early", "users"], rows)


def _latency(table: pd.DataFrame) -> str:
    rows = [
        [
            _exit_name(row["exit"], len(table)),
            f"{row['mmac']:.2f}",
            f"{row['latency_ms']:.3f}",
            f"{row['latency_p95_ms']:.3f}",
        ]
        for row in table.to_dict("records")
    ]
    return _markdown(["exit", "MMAC", "median, ms", "95th percentile, ms"], rows)


def _exit_name(exit: int, count: int) -> str:
    return "last" if exit == count - 1 else str(exit)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _correlation(table: pd.DataFrame) -> float:
    return float(np.corrcoef(table["mmac"], table["latency_ms"])[0, 1])


def _draw_latency(table: pd.DataFrame, correlation: float, path: Path) -> None:
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    slope, intercept = np.polyfit(table["mmac"], table["latency_ms"], 1)
    ends = np.array([0.0, table["mmac"].max()])
    axes.plot(ends, slope * ends + intercept, color="0.6", linewidth=1, zorder=1)
    axes.scatter(table["mmac"], table["latency_ms"], zorder=2)
    for row in table.to_dict("records"):
        name = _exit_name(row["exit"], len(table))
        axes.annotate(name, (row["mmac"], row["latency_ms"]), (5, -9), textcoords="offset points", fontsize=8)
    axes.set(xlabel="MMAC, backbone and own head", ylabel="median latency, ms")
    axes.set(xlim=(0, 1.12 * ends[1]), ylim=(0, None))
    axes.set_title(f"Latency against MACs per exit, batch 1, r = {correlation:.3f}", fontsize=10)
    figure.savefig(path, dpi=150)
