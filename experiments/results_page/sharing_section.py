"""The results page's part on sharing: curves over rounds on users who took no part; where new users' exits start."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from persephonee.experiments.results_page.runs_section import data_name, heading, simulate_text
from persephonee.experiments.results_page.sources import Run, Sources, percent, shell_block
from persephonee.server.report.figure_style import figure_style, new_figure, save_figure

METRICS_ONLY = "metrics only"
COLOURS = {METRICS_ONLY: "#222222", "fedavg": "#56b4e9", "fedadam": "#e69f00"}
OTHER = "#cc79a7"
MARKERS = {METRICS_ONLY: "o", "fedavg": "s", "fedadam": "^"}
EXITS_SHOWN = 3
"""The shallow exits, for which sharing is meant."""


def render_sharing(sources: Sources, images: Path) -> list[str]:
    """Return the lines of all runs that measured held-out users, by data set, and draw their curves into `images`."""
    lines: list[str] = []
    for name in dict.fromkeys(data_name(run.config) for run in sources.runs if run.has_held_out_users):
        runs = [run for run in sources.runs if run.has_held_out_users and data_name(run.config) == name]
        tables = {strategy_of(run): held_out_means(run) for run in runs}
        picture = f"results-sharing-{runs[0].config['dataset']}"
        with figure_style():
            save_figure(draw_rounds(tables, name), images, picture)
        (images / f"{picture}.svg").unlink()
        lines += [f"### {heading(name)}", "", f"![Accuracy over rounds]({images.name}/{picture}.png)", ""]
        lines += _table(tables)
        for run in runs:
            lines += [f"{strategy_of(run)}:", "", *shell_block(simulate_text(run, sources.models))]
    return lines


def render_starts(sources: Sources, images: Path) -> list[str]:
    """Return the meta-learning tables: means over the early exits, and what a start gains over the pretrained one."""
    lines: list[str] = []
    for path in sources.starts:
        means = pd.read_csv(path)
        means["samples"] = means.samples.astype(str)
        early = means[means.exit < means.exit.max()]
        name = path.stem.removeprefix("meta-learning-")
        starts = list(dict.fromkeys(early.start))
        lines += [f"### {name}, {int(early.users.max())} held-out users", ""]
        lines += _copied(path.with_suffix(".png"), f"Where new users' exits start, {name}", images)
        lines += [f"| samples | epochs | {' | '.join(starts)} |", "|---" * (2 + len(starts)) + "|"]
        for (samples, epochs), part in early.groupby(["samples", "epochs"], sort=False):
            own = part.groupby("start")[["accuracy", "gain"]].mean()
            cells = [_start_cell(own.loc[start]) for start in starts]
            lines.append(f"| {samples} | {epochs} | {' | '.join(cells)} |")
        lines += [
            "",
            "Accuracy, mean over early exits and users; in brackets the gain over the first start, in points. The "
            "commands: [sharing.md](sharing.md#when-it-pays).",
            "",
        ]
    return lines


def render_attacks(sources: Sources, images: Path) -> list[str]:
    """Return the tables of membership inference: what each release lets an attacker find."""
    lines: list[str] = []
    for path in sources.attacks:
        name = path.stem.removeprefix("membership-")
        lines += [f"### {name}", "", *_copied(path.with_suffix(".png"), f"Membership inference, {name}", images)]
        lines += ["| what leaves | attack | AUC | advantage | found at 1% false | accuracy of the exits |"]
        lines += ["|---" * 6 + "|"]
        rows: Any = pd.read_csv(path).itertuples()
        for row in rows:
            lines.append(
                f"| {row.release} | {row.attack} | {row.auc:.3f} ± {row.auc_se:.3f} | {row.advantage:.3f} | "
                f"{percent(row.found)} | {percent(row.accuracy)} |"
            )
        lines.append("")
    return lines


def _copied(picture: Path, says: str, images: Path) -> list[str]:
    """Copy a picture beside the page, where there is one, and return its line."""
    if not picture.exists():
        return []
    copy = images / f"results-{picture.name}"
    copy.write_bytes(picture.read_bytes())
    return [f"![{says}]({images.name}/{copy.name})", ""]


def strategy_of(run: Run) -> str:
    """Return how a run's exits were merged."""
    return str(run.config["strategy"]) if run.config.get("share-exits") else METRICS_ONLY


def held_out_means(run: Run) -> pd.DataFrame:
    """Return means over held-out users: round, stage, exit, accuracy."""
    table = pd.read_parquet(run.path / "held_out.parquet")
    table = table[table.status == "ok"]
    return table.groupby(["round", "stage", "exit"]).accuracy.mean().reset_index()


def draw_rounds(tables: dict[str, pd.DataFrame], title: str) -> Figure:
    """Draw the global exits' accuracy on held-out users after each round, a panel for each shallow exit."""
    figure = new_figure()
    axes_of = figure.subplots(1, EXITS_SHOWN)
    for exit, axes in enumerate(axes_of):
        for name, table in tables.items():
            rows = table[(table.stage == "before") & (table.exit == exit)].sort_values("round")
            style: dict[str, Any] = {"color": COLOURS.get(name, OTHER), "marker": MARKERS.get(name, "D")}
            if name == METRICS_ONLY:
                # its global exits never change, however few rounds were run
                axes.axhline(rows.accuracy.iloc[0], linewidth=1.2, color=style["color"], label=name)
            else:
                axes.plot(rows["round"], rows.accuracy, markersize=4, label=name, **style)
        axes.set(title=f"exit {exit}", xlabel="rounds")
    axes_of[0].set_ylabel("accuracy of the global exit")
    figure.legend(*axes_of[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))
    figure.suptitle(f"{title}: users who took no part", fontsize=10.5)
    return figure


def _table(tables: dict[str, pd.DataFrame]) -> list[str]:
    heads = [f"{name}, round {int(table['round'].max())}" for name, table in tables.items()]
    lines = [f"| exit | at the start | {' | '.join(heads)} |", "|---" * (2 + len(tables)) + "|"]
    first = next(iter(tables.values()))
    for exit in range(int(first.exit.max()) + 1):
        start = _at(first, 0, "before", exit)
        cells = []
        for table in tables.values():
            end = int(table["round"].max())
            before, after = (_at(table, end, stage, exit) for stage in ("before", "after"))
            gain = "" if before is None or start is None else f" ({100 * (before - start):+.1f})"
            own = "" if after is None else f"; own {percent(after)}"
            cells.append(f"{percent(before)}{gain}{own}")
        name = "last" if exit == int(first.exit.max()) else str(exit)
        lines.append(f"| {name} | {percent(start)} | {' | '.join(cells)} |")
    said = (
        "The global exits on users who took no part, the gain over the start in points; `own`: after their own round."
    )
    return [*lines, "", said, ""]


def _at(table: pd.DataFrame, number: int, stage: str, exit: int) -> float | None:
    rows = table[(table["round"] == number) & (table.stage == stage) & (table.exit == exit)]
    return float(rows.accuracy.iloc[0]) if len(rows) else None


def _start_cell(row: Any) -> str:
    return f"{percent(row.accuracy)} ({100 * row.gain:+.1f})"
