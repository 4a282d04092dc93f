"""The report of a run: summary.json, the figures and report.html, drawn from the run's tables alone.

Drawing again gives the same bytes: nothing but the tables, config.json and the example user that was kept goes in.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from persephonee.multi_exit.atomic_files import write_json_atomically, write_text_atomically
from persephonee.server.report import figure_style as figures_style
from persephonee.server.report import figures
from persephonee.server.report.example_user_section import ExampleUser, keep_example_user, read_example_user
from persephonee.server.report.pretraining_section import draw_pretraining, pretraining_caption
from persephonee.server.report.sharing_section import draw_held_out, held_out_text, sharing_part
from persephonee.server.report.template import STYLE, TEMPLATE
from persephonee.server.results.pretraining_curves import read_curves
from persephonee.server.results.results import summarise
from persephonee.server.results.run_folder import CHANGED, REPORT_NAME, RunFolder
from persephonee.server.results.summary import ExitSummary, Spread, Summary
from persephonee.server.results.summary_text import (
    UNKNOWN,
    cost_caption,
    exits_caption,
    headline_sentences,
    mean_percent,
    mega_macs,
    number_of_bytes,
    number_of_seconds,
    percent,
    rates_caption,
    rounds_caption,
    users_caption,
)
from persephonee.server.results.table_schemas import RunTables

SUMMARY_NAME = "summary.json"
FIGURES_NAME = "figures"


def draw_report(run: Path, example_user: ExampleUser | None = None) -> Path:
    """Draw summary.json, figures/ and report.html of a run again, from its tables.

    Args:
        run: the folder of a run with at least one completed round.
        example_user: one user shown as an example; kept in the run folder, so that later drawings show it too.

    Returns:
        The path of report.html.

    Raises:
        ServerError: `run` is no run folder, lacks a table, holds a table that is cut off, or completed no round.
    """
    folder = RunFolder.open(run)
    tables = folder.tables()
    summary = summarise(tables, folder.config)
    figures_folder = folder.path / FIGURES_NAME
    if example_user is not None:
        keep_example_user(figures_folder, example_user)
    shown = read_example_user(figures_folder)
    write_json_atomically(folder.path / SUMMARY_NAME, asdict(summary))
    page = render_page(
        name=folder.path.name,
        summary=summary,
        drawn=[*draw_figures(tables, summary, figures_folder), *_draw_pretraining(folder.path)],
        example_user=_example_user_part(shown, tables, summary) if shown else None,
        sharing=sharing_part(summary.sharing, summary.held_out, folder.path),
        config=folder.config,
    )
    write_text_atomically(folder.path / REPORT_NAME, page)
    return folder.path / REPORT_NAME


def draw_figures(tables: RunTables, summary: Summary, folder: Path) -> list[dict[str, Any]]:
    """Draw the figures of the last round into `folder` as PNG and SVG.

    Returns:
        For each figure its title, what to see in it, and its SVG to stand in a page; empty without a valid user.
    """
    if not summary.exits or not summary.counts.ok:
        return []
    users = [row for row in tables.clients_of(summary.round) if row["status"] == "ok"]
    rows = figures.RoundRows(exits=tables.exits_of(summary.round), users=users)
    plan = [
        ("accuracy-per-exit", "Accuracy per exit", exits_caption, figures.draw_accuracy_per_exit),
        ("users-over-accuracy", "How many users get which accuracy", users_caption, figures.draw_users_over_accuracy),
        ("accuracy-against-cost", "Accuracy against cost", cost_caption, figures.draw_accuracy_against_cost),
        ("exit-rates", "Where samples leave", rates_caption, figures.draw_exit_rates),
    ]
    drawn = []
    with figures_style.figure_style():
        for name, title, caption, draw in plan:
            svg = figures_style.save_figure(draw(rows, summary), folder, name)
            drawn.append(_figure_part(name, title, caption(summary), svg))
        if len(summary.rounds) > 1:
            svg = figures_style.save_figure(figures.draw_rounds(summary), folder, "rounds")
            drawn.append(_figure_part("rounds", "Over the rounds", rounds_caption(summary), svg))
        if summary.held_out and len(summary.held_out.rounds) > 1:
            svg = figures_style.save_figure(draw_held_out(summary.held_out), folder, "held_out")
            drawn.append(_figure_part("held_out", "Users who took no part", held_out_text(summary.held_out), svg))
    return drawn


def _draw_pretraining(run: Path) -> list[dict[str, Any]]:
    curves = read_curves(run)
    if not curves:
        return []
    with figures_style.figure_style():
        svg = figures_style.save_figure(draw_pretraining(curves), run / FIGURES_NAME, "pretraining")
    return [_figure_part("pretraining", "How the model was trained before", pretraining_caption(curves), svg)]


def render_page(
    name: str,
    summary: Summary,
    drawn: list[dict[str, Any]],
    example_user: Mapping[str, Any] | None,
    sharing: Mapping[str, Any] | None,
    config: Mapping[str, Any],
) -> str:
    """Return the page as HTML; everything that came from outside is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE).render(
        style=Markup(STYLE),
        title=name,
        summary=summary,
        headline=headline_sentences(summary),
        tiles=_tiles(summary) if summary.counts.ok else [],
        figures=drawn,
        exits=_exits_part(summary) if summary.exits else None,
        example_user=example_user,
        sharing=sharing,
        left_out=_left_out_part(summary),
        **_settings_part(config),
    )


def _figure_part(name: str, title: str, see: str, svg: str) -> dict[str, Any]:
    return {"title": title, "see": see, "svg": Markup(figures_style.for_page(svg, name, title))}


def _tiles(summary: Summary) -> list[dict[str, str]]:
    policy, change, kept = summary.policy, summary.policy.change, summary.policy.exits_kept
    threshold, labels = policy.threshold, ", ".join(f"{key}: {count}" for key, count in summary.labels.items())
    tiles = [
        ("Accuracy of the policy", mean_percent(policy.accuracy_after), "after"),
        ("Mean cost", mean_percent(policy.cost_fraction_after), ""),
        ("Users whom it helped", percent(change.helped if change else None, 0), ""),
        ("Users", f"{summary.counts.ok} of {summary.counts.asked}", ""),
        ("Threshold", f"{threshold.median:.2f}" if threshold else UNKNOWN, ""),
        ("Early exits kept", f"{kept.mean:.1f} of {summary.num_exits}" if kept else UNKNOWN, ""),
        ("Sent per client", number_of_bytes(_mean(summary.bytes_up)), ""),
        ("Time to personalise", number_of_seconds(_mean(summary.seconds_personalise)), ""),
    ]
    hurt = percent(change.hurt if change else None, 0)
    notes = [
        f"{mean_percent(policy.accuracy_before)} before; original {mean_percent(policy.accuracy_original)}",
        f"of {mega_macs(policy.original_macs)}; {mean_percent(policy.cost_fraction_before)} before",
        f"{hurt} hurt, {percent(change.unchanged if change else None, 0)} as before",
        f"gave a result; labels {labels}" if labels else "gave a result",
        f"median; 5–95 % of users {threshold.p05:.2f}–{threshold.p95:.2f}" if threshold else "",
        "mean over users; the others were pruned",
        f"{number_of_bytes(_mean(summary.bytes_down))} received; means of the round",
        f"mean; {_count(summary.num_train)} training samples",
    ]
    return [
        {"name": name, "value": value, "look": look, "note": note}
        for (name, value, look), note in zip(tiles, notes, strict=True)
    ]


def _exits_part(summary: Summary) -> dict[str, Any]:
    columns = "exit,MMAC,cost,before,after,helped,hurt,reaches the original,kept,leave here before → after"
    return {"columns": columns.split(","), "rows": [_exit_cells(entry) for entry in summary.exits]}


def _exit_cells(entry: ExitSummary) -> list[str]:
    change = entry.change
    return [
        "last (original)" if entry.is_last else str(entry.exit),
        UNKNOWN if entry.macs is None else f"{entry.macs / 1e6:,.1f}",
        percent(entry.cost_fraction, 0),
        mean_percent(entry.accuracy_before),
        mean_percent(entry.accuracy_after),
        percent(change.helped if change else None, 0),
        percent(change.hurt if change else None, 0),
        percent(entry.reaches_original, 0),
        percent(entry.kept, 0),
        f"{percent(entry.exit_rate_before, 0)} → {percent(entry.exit_rate_after, 0)}",
    ]


def _example_user_part(shown: Mapping[str, Any], tables: RunTables, summary: Summary) -> dict[str, Any]:
    answers, order = f"answers of exit {shown['exit']}", "before → after"
    if shown["exit"] is None:
        answers, order = "the policy beside the original network", "of the original → of the personal policy"
    words = (
        f"User {shown['client_id']}, {answers}: {shown['corrected']} test images went from wrong to right and "
        f"{shown['worsened']} from right to wrong. Under each image: the answer {order}."
    )
    own = [row for row in tables.clients_of(summary.round) if row["client_id"] == shown["client_id"]]
    if own and own[0]["status"] == "ok":
        words += (
            f" The policy's accuracy for this user went from {percent(own[0]['accuracy_before'])} to "
            f"{percent(own[0]['accuracy_after'])}, on {own[0]['num_test']} test images."
        )
    groups = (
        ("From wrong to right", [e for e in shown["examples"] if e["after"] == e["label"] != e["before"]]),
        ("From right to wrong", [e for e in shown["examples"] if e["before"] == e["label"] != e["after"]]),
        ("From wrong to wrong", [e for e in shown["examples"] if e["label"] not in (e["before"], e["after"])]),
    )
    return {"words": words, "groups": [{"title": title, "examples": found} for title, found in groups if found]}


def _left_out_part(summary: Summary) -> dict[str, Any]:
    counts = summary.counts
    words = (
        f"Of {counts.asked} clients asked, {counts.too_small} had too few samples, {counts.failed} failed, and the "
        f"replies of {counts.refused} were refused; none of them is in the numbers above."
    )
    if counts.ok == counts.asked:
        words = f"Nothing: all {counts.asked} clients that were asked gave a result."
    rows = [asdict(entry) for entry in summary.left_out]
    nameless = counts.asked - counts.ok - len(rows)
    if nameless:
        rows.append(
            {"client_id": UNKNOWN, "status": f"{nameless} more never answered, so that their names are unknown"}
        )
    if summary.rolled_back:
        words += (
            f" For {len(summary.rolled_back)} users an exit came out worse on their calibration part than it was; it "
            "kept its earlier weights."
        )
    for number in range(summary.num_exits):
        users = [entry.client_id for entry in summary.rolled_back if number in entry.exits]
        if users:
            status = f"exit {number} kept its earlier weights"
            rows.append({"client_id": ", ".join(users), "status": f"{status} ({len(users)} users)"})
    return {"words": words, "rows": rows}


def _settings_part(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return the settings that differ from their defaults, what identifies the run among them, and all others."""
    flat = _flat({key: value for key, value in config.items() if key != CHANGED})
    shown = {*config.get(CHANGED, ()), "model", "backbone", "dataset", "seed", "clients", "rounds", "labels"}
    return {
        "changed": [(key, value) for key, value in flat if key in shown],
        "config": [(key, value) for key, value in flat if key not in shown],
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
            flat.append((f"{prefix}{key}", shown))
    return flat


def _mean(spread: Spread | None) -> float | None:
    return spread.mean if spread else None


def _count(spread: Spread | None) -> str:
    return UNKNOWN if spread is None else f"{spread.mean:.0f}"
