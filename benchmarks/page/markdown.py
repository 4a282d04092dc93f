"""Tables and sentences of the page that all sections share."""

from collections.abc import Sequence
from typing import Any


def table_of(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def machine_line(about: dict[str, Any]) -> str:
    """Return the machine that a result was made on: processor, cores, threads, PyTorch."""
    machine = about["machine"]
    cores, threads = machine["cores"], machine["threads"]
    card = f"{machine['card']}, " if "card" in machine else ""
    return (
        f"{card}{machine['processor']}, {cores} core{'s'[: cores - 1]}, {threads} thread{'s'[: threads - 1]}, "
        f"PyTorch {machine['torch']}"
    )
