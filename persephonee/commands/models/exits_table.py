"""The cost table of a network, for a person and for a program."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from persephonee.commands.errors import printable

if TYPE_CHECKING:
    from persephonee.multi_exit.network import MultiExitNetwork


def exits_table(network: "MultiExitNetwork", accuracies: Sequence[float] = ()) -> Table:
    """Return a terminal table with a row per exit, the last exit included.

    Args:
        network: whose exits.
        accuracies: of the M+1 exits, in [0, 1], for a further column; empty for none.
    """
    shape = "x".join(str(length) for length in network.input_shape)
    title = f"{network.spec.backbone}, {shape} px, {network.num_classes} classes, {network.spec.head} heads"
    table = Table(
        # names that others gave may have brackets, which are no markup
        title=Text(printable(title), style="table.title"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("exit", no_wrap=True)
    table.add_column("behind", no_wrap=True)
    numbers = ["share", "MMAC", "kparams", "head\nMMAC", "head\nkparams", *(["accuracy"] if accuracies else [])]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for number, cost in enumerate(network.costs.exit_costs):
        cells: list[str | Text] = [
            "last" if number == network.num_exits else str(number),
            Text(printable(cost.at)),
            f"{cost.share:.1%}",
            f"{cost.macs / 1e6:.2f}",
            f"{cost.params / 1e3:.1f}",
            f"{cost.head_macs / 1e6:.2f}",
            f"{cost.head_params / 1e3:.1f}",
        ]
        table.add_row(*cells, *([f"{accuracies[number]:.2%}"] if accuracies else []))
    return table


def exits_json(network: "MultiExitNetwork") -> dict[str, Any]:
    """Return the cost table as JSON values: MACs and parameters of the whole backbone, and a row per exit."""
    columns = ("exit", "share", "macs", "params", "head_macs", "head_params", "at")
    rows = [asdict(cost) for cost in network.costs.exit_costs]
    return {
        "backbone": network.spec.backbone,
        "macs": network.costs.original_macs,
        "params": network.costs.original_params,
        "exits": [{column: row[column] for column in columns} for row in rows],
    }
