"""What `persephonee device` prints: a line for each answer and event, or JSON lines, and the table of the status."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from persephonee.commands.errors import printable

if TYPE_CHECKING:
    from persephonee.clients.runtime.device_settings import Prediction
    from persephonee.clients.runtime.device_state import Clock
    from persephonee.clients.runtime.device_status import DeviceStatus
    from persephonee.clients.runtime.event_log import Event


class DeviceLines:
    """Prints answers and events as they come.

    Args:
        class_names: K names.
        clock: of the device.
        as_json: one JSON object a line, with "type" "answer" or "event".
        quiet: print events only.
    """

    def __init__(self, class_names: tuple[str, ...], clock: "Clock", *, as_json: bool, quiet: bool) -> None:
        self._class_names = class_names
        self._clock = clock
        self._as_json = as_json
        self._quiet = quiet

    def show_answer(self, answer: "Prediction") -> None:
        """Print an answer."""
        if self._quiet:
            return
        name = printable(self._class_names[answer.label])
        if self._as_json:
            line = {
                "type": "answer",
                "time": self._time("%Y-%m-%dT%H:%M:%SZ"),
                "key": answer.key,
                "label": answer.label,
                "class": name,
                "confidence": round(answer.confidence, 6),
                "exit": answer.exit,
                "latency_ms": round(answer.latency_ms, 3),
                "explored": answer.explored,
                "stored": answer.stored,
            }
            typer.echo(json.dumps(line))
            return
        notes, key = "  explored" if answer.explored else "", printable(answer.key)
        typer.echo(
            f"{self._time('%Y-%m-%d %H:%M')}  {key:<18} {name:<8} {answer.confidence:6.1%}  exit {answer.exit}  "
            f"{answer.latency_ms:6.2f} ms{notes}"
        )

    def show_event(self, event: "Event") -> None:
        """Print an event."""
        if self._as_json:
            typer.echo(json.dumps(event.as_json()))
        else:
            typer.echo(f"{self._time('%Y-%m-%d %H:%M')}  * {printable(event.kind)}: {printable(event.reason)}")

    def _time(self, pattern: str) -> str:
        return datetime.fromtimestamp(self._clock.wall(), UTC).strftime(pattern)


def show_status(status: "DeviceStatus") -> None:
    """Print a device's status: what it does, what it saved, where samples left, and the last events."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from persephonee.commands.results.number_table import number_table

    console = Console()
    for line in _sentences(status):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    exits = number_table("Samples by the exit that answered", ("samples", "share", "in use"))
    last = len(status.counters.exits) - 1
    for exit, count in enumerate(status.counters.exits):
        share = count / max(status.counters.frames, 1)
        in_use = "yes" if exit in status.exits or exit == last else "no"
        exits.add_row("last" if exit == last else str(exit), str(count), f"{share:.1%}", in_use)
    console.print(exits)
    if not status.events:
        return
    events = Table(title="Last events", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("time (UTC)", "event", "reason"):
        events.add_column(name, no_wrap=name != "reason")
    for event in status.events:
        # a reason names files and labels, whose brackets are no markup
        events.add_row(event.time, Text(printable(event.kind)), Text(printable(event.reason)))
    console.print(events)


def _sentences(status: "DeviceStatus") -> list[str]:
    counters, state = status.counters, status.state
    running = "is running" if status.is_running else "is not running"
    validated = f", validated {status.validation.threshold:g}" if status.validation else ", not validated yet"
    lines = [
        f"The device of {status.user} {running}; phase: {state.phase.value}; round {state.round} is in force.",
        f"Policy: exits {list(status.exits)} and the last one, threshold {state.threshold:g}{validated}.",
        f"Stored: {status.samples.get('train', 0)} training and {status.samples.get('calibration', 0)} calibration "
        f"samples, {status.labelled} of them labelled.",
        f"Rounds: {counters.rounds} done in {counters.round_seconds:.1f} s, {counters.refused_rounds} given up.",
    ]
    if counters.frames:
        mean, original = counters.macs / counters.frames / 1e6, counters.original_macs / counters.frames / 1e6
        lines.append(
            f"Answered: {counters.frames} samples ({counters.explored} explored, {counters.skipped} frames skipped) at "
            f"{mean:.2f} of {original:.2f} MMAC on average, {status.macs_saved:.0%} saved, and in "
            f"{counters.latency_ms / counters.frames:.2f} ms."
        )
    if state.asked:
        lines.append(f"A round was asked for: {state.asked}.")
    return lines
