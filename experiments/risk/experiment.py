"""The rules side by side: the drop against the last exit, how often the promise is missed, and what it costs.

    python -m persephonee.experiments.risk.experiment --model MODEL --data qmnist --data-path FILE --out runs/risk
    python -m persephonee.experiments.risk.experiment --model MODEL --data writers --out runs/risk --labels none

Each redraw divides the users whom the model has not trained on into held-out users, whose curves ship with the model,
and new ones, and draws the new ones' calibration samples again from those that trained nothing; the losses are counted
on the rest. Validation users of the pretraining are among them: their samples chose the epoch, and no weight. A redraw
violates the promise where the new users' mean drop is above the tolerance. Images of another kind (`unfamiliar.py`) say
whether a policy still passes on what it does not know. Prints the table and writes it as parquet.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import typer

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.risk.risk_control import choose_candidate, pool_curves
from persephonee.clients.personalisation.risk.risk_curves import RiskCurve, candidate_policies
from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.clients.personalisation.settings import Schedule
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.samples import Partitions
from persephonee.data_partitions.settings import Dataset, DataSettings
from persephonee.data_partitions.user_splits import choose_users
from persephonee.experiments.risk.exit_outputs import exit_outputs
from persephonee.experiments.risk.prepared import SETTINGS, Prepared, prepare
from persephonee.experiments.risk.unfamiliar import KINDS
from persephonee.experiments.studies.domain_users import CENSUS_EMPLOYEES, HIGH_SCHOOL_STUDENTS
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.atomic_files import check_writable
from persephonee.multi_exit.storage import ModelMetadata, load_network

PAPER, RULES = "paper", ("paper", "controlled", "federated")
PROMISE = ((SETTINGS.drop_tolerance, SETTINGS.delta),)
PAPER_REDRAWS = 20
"""Of so many of the redraws only: the search over exits and thresholds takes far longer than the other rules."""


def redraw(
    shipping: Sequence[Prepared],
    new: Sequence[tuple[int, Prepared]],
    rng: np.random.Generator,
    with_paper: bool,
) -> list[dict[str, Any]]:
    """Return a row per new user and rule: user, rule, drop and cost.

    Args:
        shipping: held-out users, whose curves ship with the model.
        new: the others, with their numbers.
        rng: draws the calibration samples.
        with_paper: also by the paper's rule, and on images of another kind.
    """
    shipped = [(user, user.drawn(rng)) for user in shipping]
    drawn_of = [(number, user, user.drawn(rng)) for number, user in new]
    own = [user.curve(drawn[: user.num_calibration]) for _, user, drawn in drawn_of]
    pools = {
        "controlled": pool_curves(
            [user.curve(drawn) for user, drawn in shipped],
            "controlled",
            PROMISE,
            judged=[user.true_curve(drawn) for user, drawn in shipped],
        ),
        "federated": pool_curves(own, "federated", PROMISE),
    }
    rows: list[dict[str, Any]] = []
    for (number, user, drawn), curve in zip(drawn_of, own, strict=True):
        judged = drawn[user.num_calibration :]
        policies = {rule: _with_pool(user, curve, pool) for rule, pool in pools.items()}
        if with_paper:
            policies[PAPER] = user.as_the_paper_says(drawn[: user.num_calibration])
        for rule, policy in policies.items():
            checked = rule != PAPER
            row = {"user": number, "rule": rule, **user.outcome(policy, judged, checked)}
            rows.append({**row, **user.on_unfamiliar(policy, checked)} if with_paper else row)
    return rows


def table_of(rows: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Return a row per rule, in points: mean drop, its 95 % bootstrap interval over users, and the other measures."""
    rng, found = np.random.default_rng(0), []
    for rule in RULES:
        of = rows[rows.rule == rule]
        users = of.groupby("user")["drop"].mean().to_numpy()
        means = users[rng.integers(len(users), size=(2000, len(users)))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        each = of.groupby("redraw")["drop"]
        found.append(
            {
                "rule": rule,
                "drop": 100 * users.mean(),
                "low": 100 * low,
                "high": 100 * high,
                "beyond": (of["drop"] > tolerance).mean(),
                "worst_tenth": 100 * each.apply(lambda d: d.nlargest(max(1, len(d) // 10)).mean()).mean(),
                "cost": of["cost"].mean(),
                "violations": (each.mean() > tolerance).mean(),
                "redraws": of["redraw"].nunique(),
                **{name: of[name].mean() for name in of.columns if name.startswith(KINDS)},
            }
        )
    return pd.DataFrame(found)


def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder for the users' exit outputs and the table.")],
    data: Annotated[Literal["qmnist", "writers"], typer.Option(help="Which users.")] = "writers",
    data_path: Annotated[Path | None, typer.Option(help="qmnist: the parquet file.")] = None,
    labels: Annotated[str, typer.Option(help="Of the new users' devices: all, none, or a fraction.")] = "all",
    shipped_labels: Annotated[str, typer.Option(help="Of the held-out users; empty for the same.")] = "",
    schedule: Annotated[Schedule, typer.Option(help="The schedule of the rounds.")] = "fast",
    users: Annotated[int, typer.Option(help="At most so many, of whom half ship their curves.", min=4)] = 300,
    first_user: Annotated[
        int, typer.Option(help="Leave out so many before them, who have chosen something.", min=0)
    ] = 0,
    redraws: Annotated[int, typer.Option(help="Of users and calibration samples.", min=1)] = 1000,
    unfamiliar_fraction: Annotated[
        float, typer.Option(help="The rounds' setting.", min=0, max=0.99)
    ] = SETTINGS.unfamiliar_fraction,
    shift: Annotated[bool, typer.Option(help="qmnist: employees are held out, and students are new.")] = False,
) -> None:
    """Personalise the users once, then choose policies again and again."""
    torch.set_num_threads(1)
    source: Dataset = "parquet" if data == "qmnist" else "synthetic-writers"
    settings = DataSettings(dataset=source, data_path=data_path)
    fractions = {given: _fraction(given) for given in (labels, shipped_labels or labels)}
    check_writable(out)
    network, metadata = load_network(model)
    partitions = open_fitting(settings, network, metadata)
    chosen, mark = _chosen(partitions, metadata, first_user, users), network.fingerprint[:8]

    def prepared(given: str) -> list[Prepared]:
        file = out / f"{data}-{given}-{schedule}-{first_user}-{users}-{mark}.npz"
        fraction = fractions[given]
        found = exit_outputs(network, partitions, chosen, labels=fraction, schedule=schedule, file=file)
        return [prepare(one, network, fraction, unfamiliar_fraction) for one in found]

    new = prepared(labels)
    shipping = prepared(shipped_labels) if shipped_labels else new
    rng, rows, held_out = np.random.default_rng(0), [], 0
    for number in range(redraws):
        first, rest = _divided(new, rng, shift)
        held_out, again = len(first), [(u, new[u]) for u in rest]
        drawn = redraw([shipping[u] for u in first], again, rng, with_paper=number < PAPER_REDRAWS)
        rows += [{**row, "redraw": number} for row in drawn]
    table = table_of(pd.DataFrame(rows), SETTINGS.drop_tolerance)
    kind = f"{labels}{shipped_labels and f'-by-{shipped_labels}'}-{schedule}{'-shift' if shift else ''}"
    table.to_parquet(out / f"{data}-{kind}-{unfamiliar_fraction:g}-{mark}.parquet", index=False)
    typer.echo(f"{len(new)} users, {held_out} of them held out, {redraws} redraws:")
    typer.echo(table.to_string(index=False, float_format="%.3f"))


def _fraction(labels: str) -> float:
    """Return the labelled fraction that an option means."""
    try:
        return {"all": 1.0, "none": 0.0}[labels] if labels in ("all", "none") else float(labels)
    except ValueError:
        raise ClientSettingsError(f"labels={labels} is no fraction: expected all, none, or a number.") from None


def _chosen(partitions: Partitions, metadata: ModelMetadata, first: int, count: int) -> list[str]:
    """Return users whom the model has not trained on, without the first so many, who chose something."""
    unseen = {user for user in partitions.client_ids if user not in metadata.trained_on}
    known = {*metadata.settings.get("validated_on", ()), *metadata.settings.get("calibrated_on", ())}
    everyone = sorted(unseen | (known & set(partitions.client_ids)))
    chosen = choose_users(everyone, min(first + count, len(everyone)), seed=0)
    before = choose_users(everyone, first, seed=0) if first else ()
    return [user for user in chosen if user not in before]


def _divided(users: Sequence[Prepared], rng: np.random.Generator, shift: bool) -> tuple[list[int], list[int]]:
    """Return the numbers of held-out and of new users, in a random order."""
    order = [int(u) for u in rng.permutation(len(users))]
    if not shift:
        return order[: len(order) // 2], order[len(order) // 2 :]
    domains = (CENSUS_EMPLOYEES, HIGH_SCHOOL_STUDENTS)
    first, rest = ([u for u in order if users[u].domain == domain] for domain in domains)
    return first, rest


def _with_pool(user: Prepared, curve: RiskCurve, pool: RiskPool) -> ExitPolicy:
    certificate, num_exits = pool.certificate(*PROMISE[0]), len(user.judged.confidences) - 1
    chosen = None if certificate is None else choose_candidate(curve, pool, certificate)
    if chosen is None:
        return ExitPolicy(threshold=1.0, exits_in_use=(), num_exits=num_exits)
    return candidate_policies(num_exits)[chosen]


if __name__ == "__main__":
    run_program(main)
