"""The report's part on sharing: who shared, what noise covers it, and the curve on users who took no part."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from persephonee.multi_exit.checked_json import read_with_digest
from persephonee.server.errors import ServerError
from persephonee.server.report.figure_style import ORIGINAL, SIZE_INCHES
from persephonee.server.results.sharing_results import HeldOutSummary, SharingSummary
from persephonee.server.results.summary_text import percent

COLUMNS = "exit,as the run began,then personalised,merged,then personalised"


def sharing_text(sharing: SharingSummary, run: Path) -> str:
    """Return who shared in the last round, and what noise covers it, in sentences."""
    words = (
        f"In the last round {sharing.shared} clients shared exits, {sharing.not_permitted} do not permit it, "
        f"{sharing.held_back} had nothing that was better, and what {sharing.refused} sent was refused. "
        f"Clients that sent each exit: {', '.join(f'exit {i}: {n}' for i, n in enumerate(sharing.exits))}."
    )
    path = run / "privacy.json"
    if not path.is_file():
        return words
    try:
        return f"{words} {read_with_digest(path)['words']!s}"
    except (OSError, ValueError, KeyError):
        raise ServerError(f"{path} is not whole: delete it, and the report leaves it out.") from None


def held_out_text(held_out: HeldOutSummary) -> str:
    """Return how the merged exits do on held-out users, in a sentence."""
    early = [
        (e.merged_before - e.initial_before, e)
        for e in held_out.exits
        if not e.is_last and e.merged_before is not None and e.initial_before is not None
    ]
    if not early:
        return "No held-out user gave a figure."
    best, worst = (choose(early, key=lambda pair: pair[0])[1] for choose in (max, min))
    rounds = held_out.rounds[-1].round
    if not rounds:
        return f"Nothing was merged: {held_out.users} users who took no part have the exits that the run began with."
    return (
        f"On {held_out.users} users who took no part, {rounds} rounds took exit {best.exit} from "
        f"{percent(best.initial_before)} to {percent(best.merged_before)}, the largest change, and exit {worst.exit} "
        f"from {percent(worst.initial_before)} to {percent(worst.merged_before)}, the smallest, before any "
        "personalisation of their own."
    )


def held_out_rows(held_out: HeldOutSummary) -> list[list[str]]:
    """Return the rows of the table whose columns are COLUMNS."""
    return [
        [
            "last (original)" if e.is_last else str(e.exit),
            *(percent(v) for v in (e.initial_before, e.initial_after, e.merged_before, e.merged_after)),
        ]
        for e in held_out.exits
    ]


def sharing_part(sharing: SharingSummary | None, held_out: HeldOutSummary | None, run: Path) -> dict[str, Any] | None:
    """Return what the page's template shows of sharing, None for a run without either."""
    if sharing is None and held_out is None:
        return None
    words = [sharing_text(sharing, run)] if sharing else []
    words += [held_out_text(held_out)] if held_out else []
    left_out = [*(sharing.refusals if sharing else ()), *(held_out.left_out if held_out else ())]
    return {
        "words": words,
        "columns": COLUMNS.split(","),
        "rows": held_out_rows(held_out) if held_out else [],
        "left_out": [{"client_id": entry.client_id, "status": entry.status} for entry in left_out],
    }


def draw_held_out(held_out: HeldOutSummary) -> Figure:
    """Draw the accuracy of each exit as merged, over the rounds."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    numbers = [point.round for point in held_out.rounds]
    early = [entry.exit for entry in held_out.exits if not entry.is_last]
    for exit in early:
        accuracies = [point.accuracy[exit] for point in held_out.rounds]
        shade = 0.25 + 0.75 * (exit + 1) / len(early)
        values = [float("nan") if accuracy is None else accuracy for accuracy in accuracies]
        axes.plot(numbers, values, "o-", color=(0.0, 0.45, 0.70, shade), markersize=3.5, label=f"exit {exit}")
    last = [point.accuracy[-1] for point in held_out.rounds]
    axes.plot(numbers, [float("nan") if a is None else a for a in last], "--", color=ORIGINAL, label="original")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_xlabel("round (0: as the run began)")
    axes.set_ylabel("accuracy on held-out users")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
