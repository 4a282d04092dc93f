"""A comparison of runs as tables of text, for the terminal and for the page."""

from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from persephonee.server.intervals import LEVEL, Estimate
from persephonee.server.results.comparison import ComparedRun, Comparison
from persephonee.server.results.summary_text import UNKNOWN


@dataclass(frozen=True)
class TextTable:
    """A table whose first column holds names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(comparison: Comparison) -> tuple[TextTable, ...]:
    """Return the comparison's tables: each run, the differences, the exits, and the settings that differ."""
    first, *others = comparison.runs
    users = len(comparison.users)
    interval = f"{100 * LEVEL:g} % interval"
    runs = TextTable(
        f"{users} users, in % ({interval}); helped, hurt: against the original",
        ("run", "accuracy", "original", "cost", "helped", "hurt"),
        tuple(_run_cells(run) for run in comparison.runs),
    )
    differences = TextTable(
        f"Against {first.name}, the same users (paired {interval})",
        ("run", "accuracy, points", "MMAC a sample", "helped", "hurt"),
        tuple(_difference_cells(run) for run in others),
    )
    exits = TextTable(
        "Accuracy of each exit alone, in %",
        ("run", *_exit_names(comparison)),
        tuple((run.name, *_exit_cells(run, comparison)) for run in comparison.runs),
    )
    settings = TextTable(
        "Settings that differ",
        ("setting", *(run.name for run in comparison.runs)),
        tuple((key, *(value or UNKNOWN for value in values)) for key, values in comparison.settings.items()),
    )
    return tuple(table for table in (runs, differences, exits, settings) if table.rows)


def verdict(run: ComparedRun, first: ComparedRun) -> str:
    """Return in a sentence what these users show of a run against the first one; empty for the first one itself."""
    if run.difference is None:
        return ""
    gain, cost = run.difference.accuracy, run.difference.mean_macs
    points = f"{100 * abs(gain.mean):.2f} points"
    accuracy = _told(
        gain, f"{points} more accurate", f"{points} less accurate", "neither clearly more accurate nor less"
    )
    fraction = f"{100 * abs(cost.mean) / first.mean_macs.mean:.0f} %"
    price = _told(cost, f"costs {fraction} more", f"costs {fraction} less", "costs neither clearly more nor less")
    return f"Against {first.name}, {run.name} is {accuracy}, and {price}."


def verdicts(comparison: Comparison) -> tuple[str, ...]:
    """Return a sentence for each run but the first."""
    return tuple(verdict(run, comparison.runs[0]) for run in comparison.runs[1:])


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the tables and the remarks."""
    console = console or Console()
    for told in tables_of(comparison):
        # a run's name may have brackets, which are no markup
        table = Table(title=Text(told.title, style="table.title"), title_justify="left", box=box.SIMPLE_HEAD)
        table.padding, table.pad_edge = (0, 1, 0, 0), False
        for number, column in enumerate(told.columns):
            table.add_column(Text(column), justify="right" if number else "left", overflow="fold")
        for row in told.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for remark in (*verdicts(comparison), *comparison.remarks):
        console.print(remark, highlight=False, markup=False)


def _told(difference: Estimate, above: str, below: str, neither: str) -> str:
    return above if difference.low > 0 else below if difference.high < 0 else neither


def _run_cells(run: ComparedRun) -> tuple[str, ...]:
    change = run.against_original
    return (
        run.name,
        _percent(run.accuracy),
        f"{100 * run.accuracy_original.mean:.1f}",
        _percent(run.cost_fraction),
        f"{100 * change.helped:.0f}",
        f"{100 * change.hurt:.0f}",
    )


def _difference_cells(run: ComparedRun) -> tuple[str, ...]:
    difference = run.difference
    if difference is None:
        return ()
    gain, cost, change = difference.accuracy, difference.mean_macs, difference.change
    return (
        run.name,
        f"{100 * gain.mean:+.2f} ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})",
        f"{cost.mean / 1e6:+.2f} ({cost.low / 1e6:+.2f} to {cost.high / 1e6:+.2f})",
        f"{100 * change.helped:.0f}",
        f"{100 * change.hurt:.0f}",
    )


def _exit_names(comparison: Comparison) -> tuple[str, ...]:
    """Return the early exits of all runs by number, and the last exit, whatever its number is in each of them."""
    early = {entry.exit for run in comparison.runs for entry in run.exits if not entry.is_last}
    return (*(str(number) for number in sorted(early)), "last")


def _exit_cells(run: ComparedRun, comparison: Comparison) -> tuple[str, ...]:
    found = {"last" if entry.is_last else str(entry.exit): entry for entry in run.exits}
    names = _exit_names(comparison)
    return tuple(f"{100 * found[name].accuracy.mean:.1f}" if name in found else UNKNOWN for name in names)


def _percent(value: Estimate) -> str:
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"
