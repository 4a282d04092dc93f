"""The table and the picture of membership inference."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from persephonee.experiments.membership.attacks import advantage, area_under_curve, true_positive_rate
from persephonee.server.report.figure_style import AFTER, BEFORE, FRONT, ORIGINAL, figure_style, new_figure

COLOURS = {"loss": BEFORE, "calibrated": FRONT, "LiRA": AFTER}


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per release and attack.

    Args:
        rows: user, release, attack, score, member, accuracy; one per sample.

    Returns:
        release, attack, auc (mean over users) and its standard error auc_se, advantage and found (the true positive
        rate at 1 % false positives) over the samples of all users together, accuracy of the exits that were released
        (mean over users), users, samples.
    """
    table = []
    for (release, attack), part in rows.groupby(["release", "attack"], sort=False):
        scores, members = part.score.to_numpy(), part.member.to_numpy(dtype=np.bool_)
        areas = [
            area_under_curve(own.score.to_numpy(), own.member.to_numpy(dtype=np.bool_))
            for _, own in part.groupby("user")
        ]
        table.append(
            {
                "release": release,
                "attack": attack,
                "auc": np.mean(areas),
                "auc_se": np.std(areas, ddof=1) / np.sqrt(len(areas)) if len(areas) > 1 else float("nan"),
                "advantage": advantage(scores, members),
                "found": true_positive_rate(scores, members, 0.01),
                "accuracy": part.groupby("user").accuracy.first().mean(),
                "users": len(areas),
                "samples": len(part),
            }
        )
    return pd.DataFrame(table)


def markdown(table: pd.DataFrame) -> str:
    """Return the table that `summarise` made, for a page."""
    lines = [
        "| what leaves | attack | AUC | advantage | found at 1 % false | accuracy of the exits |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        lines.append(
            f"| {row['release']} | {row['attack']} | {row['auc']:.3f} ± {row['auc_se']:.3f} | {row['advantage']:.3f} | "
            f"{row['found']:.1%} | {row['accuracy']:.1%} |"
        )
    users, samples = table.users.max(), table.samples.max()
    lines += ["", f"{users} users, {samples} samples; AUC: mean over users and its standard error."]
    return "\n".join(lines)


def draw_attacks(table: pd.DataFrame, title: str) -> Figure:
    """Return the figure: the AUC of each attack on each release, with two standard errors, and the exits' accuracy."""
    releases = list(dict.fromkeys(table.release))
    with figure_style():
        figure = new_figure()
        axes = figure.subplots()
        for number, (attack, colour) in enumerate(COLOURS.items()):
            part = table[table.attack == attack]
            paths = [releases.index(release) + 0.12 * (number - 1) for release in part.release]
            axes.errorbar(
                paths,
                part.auc,
                yerr=2 * part.auc_se,
                fmt="o",
                capsize=3,
                color=colour,
                label=attack,
            )
        axes.axhline(0.5, color=ORIGINAL, linestyle="--", linewidth=1.0)
        accuracies = [table[table.release == release].accuracy.iloc[0] for release in releases]
        names = [release.replace(", ", "\n").replace(" exits", "\nexits") for release in releases]
        labels = [f"{name}\n({value:.0%})" for name, value in zip(names, accuracies, strict=True)]
        axes.set_xticks(range(len(releases)), labels)
        axes.set(ylabel="AUC of membership inference", xlabel="what leaves a client (accuracy of its exits)")
        figure.legend(title="attack", loc="outside right center")
        figure.suptitle(f"{title}; dashed: guessing", fontsize=10.5)
    return figure
