"""The run's result as a table for the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

from persephonee.server.results.sharing_results import HeldOutSummary
from persephonee.server.results.summary import ExitSummary, Spread, Summary
from persephonee.server.results.summary_text import (
    UNKNOWN,
    headline,
    mean_percent,
    mega_macs,
    number_of_bytes,
    number_of_seconds,
    percent,
)

# More names than this would push the table out of sight; the report page has them all.
SHOWN_LEFT_OUT = 8


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print the headline, the table of exits, the key numbers and what was left out."""
    console = console or Console()
    console.print()
    console.print(headline(summary), style="bold", highlight=False)
    if summary.exits:
        console.print(exits_table(summary))
        console.print(key_numbers_table(summary))
    if summary.held_out:
        console.print(held_out_table(summary.held_out))
    for line in left_out_lines(summary):
        # a client's words; a terminal obeys escapes
        shown = "".join(letter if letter.isprintable() or letter == "\u00a0" else "\ufffd" for letter in line)
        console.print(shown, highlight=False, markup=False)


def exits_table(summary: Summary) -> Table:
    """Return the table of exits, in percent: accuracies are means over users, helped and hurt are fractions of users.

    It fits into 80 columns.
    """
    title = f"Round {summary.round}, {summary.counts.ok} users, in %; cost: fraction of the original's MACs"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("exit", no_wrap=True)
    for name in ("MMAC", "cost", "before", "after", "original", "helped", "hurt", "kept", "leave here"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in summary.exits:
        table.add_row(*_cells(entry, summary))
    return table


def held_out_table(held_out: HeldOutSummary) -> Table:
    """Return the exits on held-out users, in percent: as the run began and merged, each also personalised."""
    title = f"{held_out.users} users who took no part, accuracy in %, means over users"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("exit", no_wrap=True)
    for name in ("initial", "personalised", "merged", "personalised"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in held_out.exits:
        values = (entry.initial_before, entry.initial_after, entry.merged_before, entry.merged_after)
        table.add_row("last" if entry.is_last else str(entry.exit), *(_number(value, 1) for value in values))
    return table


def key_numbers_table(summary: Summary) -> Table:
    """Return the key numbers of the whole policy as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in key_numbers(summary):
        table.add_row(name, value)
    return table


def key_numbers(summary: Summary) -> list[tuple[str, str]]:
    """Return the names and values of the key numbers, in the order in which a reader asks for them."""
    policy, counts = summary.policy, summary.counts
    sharing = summary.sharing
    shared = f"{sharing.shared} of {counts.ok}, {sharing.not_permitted} do not permit it" if sharing else ""
    change, kept = policy.change, policy.exits_kept
    threshold = policy.threshold
    return [
        (
            "policy accuracy",
            f"{mean_percent(policy.accuracy_before)} before, {mean_percent(policy.accuracy_after)} after",
        ),
        ("original accuracy", mean_percent(policy.accuracy_original)),
        (
            "mean cost",
            f"{mega_macs(policy.mean_macs_after)} of {mega_macs(policy.original_macs)} "
            f"({mean_percent(policy.cost_fraction_after)}; before {mean_percent(policy.cost_fraction_before)})",
        ),
        ("users helped, hurt", f"{percent(change.helped)}, {percent(change.hurt)}" if change else UNKNOWN),
        (
            "threshold",
            f"median {threshold.median:.2f} (5 % to 95 % of users: {threshold.p05:.2f} to {threshold.p95:.2f})"
            if threshold
            else UNKNOWN,
        ),
        ("early exits kept", f"{kept.mean:.1f} of {summary.num_exits} on average" if kept else UNKNOWN),
        ("users", f"{counts.ok} of {counts.asked} clients asked"),
        *([("shared exits", shared)] if shared else []),
        (
            "per client",
            f"{number_of_bytes(_mean(summary.bytes_up))} up, {number_of_bytes(_mean(summary.bytes_down))} down, "
            f"{number_of_seconds(_mean(summary.seconds_personalise))} to personalise",
        ),
    ]


def left_out_lines(summary: Summary) -> list[str]:
    """Return one line for each client that was left out, and one for the exits that kept earlier weights."""
    entries = [
        *summary.left_out,
        *(summary.sharing.refusals if summary.sharing else ()),
        *(summary.held_out.left_out if summary.held_out else ()),
    ]
    lines = [f"left out: {entry.client_id}: {entry.status}" for entry in entries[:SHOWN_LEFT_OUT]]
    more = len(entries) - SHOWN_LEFT_OUT
    if more > 0:
        lines.append(f"left out: {more} more, see the report page")
    if summary.rolled_back:
        exits = sum(len(entry.exits) for entry in summary.rolled_back)
        users = len(summary.rolled_back)
        lines.append(
            f"kept as they were, since the new ones were worse: {counted(exits, 'exit')} of {counted(users, 'user')}"
        )
    return lines


def counted(number: int, word: str) -> str:
    """Return a number and its noun, which has an s unless the number is 1."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def _cells(entry: ExitSummary, summary: Summary) -> list[str]:
    change = entry.change
    return [
        "last" if entry.is_last else str(entry.exit),
        UNKNOWN if entry.macs is None else f"{entry.macs / 1e6:.1f}",
        _number(entry.cost_fraction, 0),
        _number(_mean(entry.accuracy_before), 1),
        _number(_mean(entry.accuracy_after), 1),
        _number(_mean(summary.policy.accuracy_original), 1),
        _number(change.helped if change else None, 0),
        _number(change.hurt if change else None, 0),
        _number(entry.kept, 0),
        f"{_number(entry.exit_rate_before, 0)} → {_number(entry.exit_rate_after, 0)}",
    ]


def _number(share: float | None, digits: int) -> str:
    return UNKNOWN if share is None else f"{100 * share:.{digits}f}"


def _mean(spread: Spread | None) -> float | None:
    return spread.mean if spread else None
