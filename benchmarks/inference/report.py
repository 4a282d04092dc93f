"""The sections of the page that `benchmarks/inference/` and `benchmarks/device_memory/` fill."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from persephonee.benchmarks.page.markdown import machine_line, table_of
from persephonee.benchmarks.result_tables import Result


def inference_section(result: Result, figure: str) -> str:
    """Return the section on personal inference.

    Args:
        result: what `persephonee.benchmarks.inference.benchmark` measured.
        figure: the file of the latencies against MACs, as the page names it.
    """
    about, tables = result.about, result.tables
    correlation = latency_correlation(tables["latency"])
    return "\n".join(
        [
            "## Inference\n",
            "`python -m persephonee.benchmarks.inference.benchmark`: "
            f"{about['backbone']} at {about['input_size']} px on {about['dataset']}. "
            f"{machine_line(about)}, ONNX Runtime {about['onnxruntime']}. The sides of a ratio are timed in turn, "
            f"medians over {about['repeats']} repetitions (overhead: {about['overhead_repeats']}) after 3 warm-up "
            "passes.\n",
            "The engine against the same stages and heads by hand, batch 1:\n",
            _overhead(tables["overhead"]),
            "The calibrated policy against the original network, medians over the users:\n",
            _speed(tables["speed"]),
            f"Latency against MACs, batch 1, one exit in use, r = {correlation:.3f} (Fig. 6b of the paper):\n",
            _latency(tables["latency"]),
            f"![Latency against MACs]({figure})\n",
        ]
    )


def device_section(result: Result) -> str:
    """Return the section on what a device has resident."""
    about = result.about
    rows = [
        [row["user"], row["frames"], row["rounds"], f"{row['peak_bytes'] / 1e6:.0f}"]
        for row in result.tables["devices"].to_dict("records")
    ]
    return "\n".join(
        [
            "## Memory of a device\n",
            "`python -m persephonee.benchmarks.device_memory.benchmark`: "
            f"`persephonee device run` with {about['backbone']} at "
            f"{about['input_size']} px replays users of {about['dataset']} through a personalisation round. "
            f"{machine_line(about)}. A Python that has imported this build of PyTorch, and done nothing, has "
            f"{about['import_bytes'] / 1e6:.0f} MB resident.\n",
            table_of(["user", "frames", "rounds", "peak resident, MB"], rows),
        ]
    )


def latency_correlation(table: pd.DataFrame) -> float:
    """Return Pearson's r of latency and MACs."""
    return float(np.corrcoef(table["mmac"], table["latency_ms"])[0, 1])


def exit_name(exit: int, count: int) -> str:
    """Return an exit's number in words."""
    return "last" if exit == count - 1 else str(exit)


def _overhead(table: pd.DataFrame) -> str:
    rows: Sequence[Sequence[object]] = [
        [
            exit_name(row["exit"], len(table)),
            row["heads_run"],
            f"{row['by_hand_ms']:.3f}",
            f"{row['engine_ms']:.3f}",
            f"{row['overhead']:+.1%}",
            f"{row['overhead_q25']:+.1%} to {row['overhead_q75']:+.1%}",
        ]
        for row in table.to_dict("records")
    ]
    return table_of(["exit", "heads run", "by hand, ms", "engine, ms", "overhead", "quartiles"], rows)


def _speed(table: pd.DataFrame) -> str:
    rows = []
    for (labels, runtime, batch), of in table.groupby(["labels", "runtime", "batch"], sort=False):
        rows.append(
            [
                labels,
                runtime,
                batch,
                f"{of['original_ms'].median():.3f}",
                f"{of['policy_ms'].median():.3f}",
                f"**{of['speed_up'].median():.2f}x**",
                f"{of['speed_up'].min():.2f} to {of['speed_up'].max():.2f}",
                f"{of['accuracy_original'].mean():.1%}",
                f"{of['accuracy'].mean():.1%}",
                f"{of['left_early'].mean():.0%}",
                len(of),
            ]
        )
    header = ["labels", "runtime", "batch", "original, ms an image", "policy, ms an image", "speed-up", "of the users"]
    return table_of([*header, "accuracy of the original", "of the policy", "left early", "users"], rows)


def _latency(table: pd.DataFrame) -> str:
    rows = [
        [
            exit_name(row["exit"], len(table)),
            f"{row['mmac']:.2f}",
            f"{row['latency_ms']:.3f}",
            f"{row['latency_p95_ms']:.3f}",
        ]
        for row in table.to_dict("records")
    ]
    return table_of(["exit", "MMAC", "median, ms", "95th percentile, ms"], rows)
