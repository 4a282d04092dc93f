"""A table of numbers in a terminal, a row for each exit."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from persephonee.commands.errors import printable


def number_table(title: str, numbers: Sequence[str]) -> Table:
    """Return a table without rows.

    Args:
        title: in which a name that somebody gave may have brackets, which are no markup.
        numbers: the columns behind that of the exits.
    """
    table = Table(title=Text(printable(title), style="table.title"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("exit")
    for name in numbers:
        table.add_column(name, justify="right")
    return table
