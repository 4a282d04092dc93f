"""Beyond the paper: the global model knows census employees only, and high-school students personalise it."""

from dataclasses import replace

import pandas as pd

from persephonee.experiments.studies.domain_users import CENSUS_EMPLOYEES, HIGH_SCHOOL_STUDENTS
from persephonee.experiments.studies.figure_results import COLOURS, Claim, FigureResult, shown_name
from persephonee.experiments.studies.gains import exit_means
from persephonee.experiments.studies.measurements import Measured
from persephonee.experiments.studies.studies import Study
from persephonee.server.report.figure_style import figure_style, new_figure

TITLE = "A shift of domain"
NOTE = """\
The global model knows census employees alone, and high-school students, who write another hand, personalise it; each
exit alone, means over users.
"""
STUDIES = ("qmnist",)
NEEDS_OWN_STUDY = True
SCHEMES = ("hard labels", "self-distillation", "frequencies, no labels")
PANELS = {"census": "census employees, the model's domain", "students": "high-school students, another domain"}


def variants(study: Study) -> dict[str, Study]:
    """Return the study with a global model of census employees, for others of them and for students."""
    # the built-in writers at smoke scale have no domains
    has_domains = study.data.dataset == "parquet"
    training = replace(
        study,
        name=f"{study.name}-shift",
        model=replace(study.model, users=replace(study.model.users, personal_users=50 if has_domains else 6)),
        model_folder=None,
        training_domain=CENSUS_EMPLOYEES if has_domains else None,
        schemes=SCHEMES,
        sample_counts=(),
    )
    if not has_domains:
        return {"census": training, "students": training}
    return {
        "census": replace(training, domain=CENSUS_EMPLOYEES, num_users=50),
        "students": replace(training, domain=HIGH_SCHOOL_STUDENTS),
    }


def draw(measured: Measured, census: Measured, students: Measured) -> FigureResult:
    """Draw accuracy per exit before and after, for the domain that the model knows and for the other."""
    of = {"census": census, "students": students}
    numbers = table(of)
    early = census.network.num_exits
    with figure_style():
        figure = new_figure()
        axes_of = figure.subplots(1, 2, sharey=True)
        for axes, (key, title) in zip(axes_of, PANELS.items(), strict=True):
            rows = numbers[numbers.users == key]
            for name in ("before", *SCHEMES):
                part = rows[(rows.scheme == (SCHEMES[0] if name == "before" else name)) & (rows.exit < early)]
                accuracy = part.before if name == "before" else part.after
                axes.plot(part.exit, accuracy, "o-", markersize=4, color=COLOURS[name], label=name)
            original = rows[rows.exit == early].before.iloc[0]
            axes.axhline(original, color=COLOURS["original"], linewidth=1, label="original")
            axes.set(xlabel="exit", title=title)
            axes.set_xticks(range(early))
        axes_of[0].set_ylabel("accuracy (mean of users)")
        figure.legend(*axes_of[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(measured.study.title, fontsize=10.5)
    return FigureResult(figure=figure, numbers=numbers, claims=_claims(of))


def table(of: dict[str, Measured]) -> pd.DataFrame:
    """Return mean accuracies before and after, a row per group of users, scheme and exit."""
    parts = []
    for key, measured in of.items():
        for scheme in SCHEMES:
            means = exit_means(measured, scheme)[["before", "after"]].reset_index()
            parts.append(means.assign(scheme=scheme, users=key))
    return pd.concat(parts, ignore_index=True)


def _claims(of: dict[str, Measured]) -> tuple[Claim, ...]:
    found = []
    for key, group in of.items():
        means = {scheme: exit_means(group, scheme) for scheme in SCHEMES}
        users, deepest = group.exits.user.nunique(), group.network.num_exits - 1
        for exit in sorted({0, min(1, deepest), deepest}):
            before = means[SCHEMES[0]].before[exit]
            after = ", ".join(f"{100 * means[scheme].after[exit]:.1f}% ({shown_name(scheme)})" for scheme in SCHEMES)
            found.append(
                Claim(
                    claim=f"exit {exit}, {users} {PANELS[key].split(',')[0]}",
                    paper="not given",
                    ours=f"{before:.1%} before; {after}; original {means[SCHEMES[0]].before.iloc[-1]:.1%}",
                )
            )
    return tuple(found)
