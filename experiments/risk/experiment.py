"""The rules side by side: the drop against the last exit, how often the promise is missed, and what it costs.

    python -m persephonee.experiments.risk.experiment --model MODEL --data qmnist --data-path FILE --out runs/risk
    python -m persephonee.experiments.risk.experiment --model MODEL --data writers --out runs/risk --no-labels

Each redraw divides the users whom the model has not trained on into held-out users, whose curves ship with the model,
and new ones, and draws the new ones' calibration samples again from those that trained nothing; the losses are counted
on the rest. Validation users of the pretraining are among them: their samples chose the epoch, and no weight. A redraw
violates the promise where the new users' mean drop is above the tolerance. Inputs of another kind, inverted and noisy
test images, say whether a policy still passes on what it does not know. Prints the table and writes it as parquet.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray

from persephonee.clients.personalisation.calibration import CalibrationSet, calibrate
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.pruning import prune
from persephonee.clients.personalisation.risk.risk_control import choose_candidate, pool_curves
from persephonee.clients.personalisation.risk.risk_curves import (
    RiskCurve,
    candidate_losses,
    candidate_policies,
    labelled_excess,
    own_excess,
    summed,
)
from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.settings import Dataset, DataSettings
from persephonee.data_partitions.user_splits import choose_users
from persephonee.experiments.risk.exit_outputs import UNFAMILIAR, UserOutputs, exit_outputs
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.atomic_files import check_writable
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network

RULES = ("paper", "controlled", "federated")
SETTINGS = PersonalisationSettings()
PROMISE = ((SETTINGS.drop_tolerance, SETTINGS.delta),)
PAPER_REDRAWS = 20
"""Of so many of the redraws only: the search over exits and thresholds takes far longer than the other rules."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A user's samples under every candidate: what the device believes they lose, what they lose, what they cost."""

    believed: NDArray[np.float64]
    lost: NDArray[np.float64]
    costs: NDArray[np.float64]
    answers: CalibrationSet
    excess: NDArray[np.float64]
    num_calibration: int
    unfamiliar: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]
    """Confidences and correct answers of all exits on inputs of another kind, each [M+1, n], by kind."""

    def drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return all samples in a random order."""
        return rng.permutation(self.lost.shape[1])

    def curve(self, samples: NDArray[np.int64]) -> RiskCurve:
        """Return the risk curve of some samples, as the device believes it."""
        return summed(self.believed[:, samples], self.costs[:, samples])

    def true_curve(self, samples: NDArray[np.int64]) -> RiskCurve:
        """Return the curve of what is lost in truth."""
        return summed(self.lost[:, samples], self.costs[:, samples])


def prepare(outputs: UserOutputs, network: MultiExitNetwork, labelled: bool) -> Prepared:
    """Return what the rules need of a user."""
    logits = outputs.logits.astype(np.float64)
    confidences, predictions = answers_of(logits)
    test_labels = outputs.labels[outputs.num_calibration :]
    unfamiliar = {kind: answers_of(of.astype(np.float64)) for kind, of in outputs.unfamiliar.items()}
    excess, costs = labelled_excess(predictions, outputs.labels), network.costs
    known = outputs.labels if labelled else np.full_like(outputs.labels, -1)
    believed = own_excess(predictions, known, logits[-1], network.calibration)
    measured = [
        candidate_losses(confidences, of, costs.leaving_macs, float(costs.original_macs)) for of in (believed, excess)
    ]
    reference = outputs.labels if labelled else predictions[-1]
    return Prepared(
        believed=measured[0][0],
        lost=measured[1][0],
        costs=measured[1][1],
        answers=CalibrationSet(
            confidences=confidences, correct=predictions == reference, leaving_costs=costs.leaving_macs
        ),
        excess=excess,
        num_calibration=outputs.num_calibration,
        unfamiliar={kind: (sure, said == test_labels) for kind, (sure, said) in unfamiliar.items()},
    )


def answers_of(logits: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the top-1 softmax and class, each [M+1, N], of logits [M+1, N, K]."""
    likely = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (likely / likely.sum(axis=2, keepdims=True)).max(axis=2), logits.argmax(axis=2)


def redraw(users: list[Prepared], held_out: int, rng: np.random.Generator, with_paper: bool) -> list[dict[str, Any]]:
    """Return a row per new user and rule: user, rule, drop and cost."""
    order = rng.permutation(len(users))
    shipped = [(users[u], users[u].drawn(rng)) for u in order[:held_out]]
    new = [(int(u), users[u], users[u].drawn(rng)) for u in order[held_out:]]
    own = [user.curve(drawn[: user.num_calibration]) for _, user, drawn in new]
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
    for (number, user, drawn), curve in zip(new, own, strict=True):
        judged = drawn[user.num_calibration :]
        policies = {rule: _with_pool(user, curve, pool) for rule, pool in pools.items()}
        if with_paper:
            policies["paper"] = _as_the_paper_says(user, drawn[: user.num_calibration])
        for rule, policy in policies.items():
            row = {"user": number, "rule": rule, **_outcome(user, policy, judged)}
            rows.append({**row, **_unfamiliar(user, policy)} if with_paper else row)
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
                **{name: of[name].mean() for name in of.columns if name.startswith(tuple(UNFAMILIAR))},
            }
        )
    return pd.DataFrame(found)


def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder for the users' exit outputs and the table.")],
    data: Annotated[Literal["qmnist", "writers"], typer.Option(help="Which users.")] = "writers",
    data_path: Annotated[Path | None, typer.Option(help="qmnist: the parquet file.")] = None,
    labels: Annotated[bool, typer.Option(help="Whether the devices have labels.")] = True,
    schedule: Annotated[Schedule, typer.Option(help="The schedule of the rounds.")] = "fast",
    users: Annotated[int, typer.Option(help="At most so many, of whom half ship their curves.", min=4)] = 300,
    redraws: Annotated[int, typer.Option(help="Of users and calibration samples.", min=1)] = 1000,
) -> None:
    """Personalise the users once, then choose policies again and again."""
    torch.set_num_threads(1)
    source: Dataset = "parquet" if data == "qmnist" else "synthetic-writers"
    settings = DataSettings(dataset=source, data_path=data_path)
    check_writable(out)
    network, metadata = load_network(model)
    partitions = open_fitting(settings, network, metadata)
    unseen = {user for user in partitions.client_ids if user not in metadata.trained_on}
    known = {*metadata.settings.get("validated_on", ()), *metadata.settings.get("calibrated_on", ())}
    everyone = sorted(unseen | (known & set(partitions.client_ids)))
    chosen = choose_users(everyone, min(users, len(everyone)), seed=0)
    name = f"{data}-{'labels' if labels else 'none'}-{schedule}"
    outputs = exit_outputs(network, partitions, chosen, labelled=labels, schedule=schedule, file=out / f"{name}.npz")
    prepared = [prepare(one, network, labels) for one in outputs]
    held_out = len(prepared) // 2
    rng, rows = np.random.default_rng(0), []
    for number in range(redraws):
        rows += [{**row, "redraw": number} for row in redraw(prepared, held_out, rng, number < PAPER_REDRAWS)]
    table = table_of(pd.DataFrame(rows), SETTINGS.drop_tolerance)
    table.to_parquet(out / f"{name}.parquet", index=False)
    typer.echo(f"{len(prepared)} users, {held_out} of them held out, {redraws} redraws:")
    typer.echo(table.to_string(index=False, float_format="%.3f"))


def _with_pool(user: Prepared, curve: RiskCurve, pool: RiskPool) -> ExitPolicy:
    certificate, num_exits = pool.certificate(*PROMISE[0]), user.answers.num_exits
    chosen = None if certificate is None else choose_candidate(curve, pool, certificate)
    if chosen is None:
        return ExitPolicy(threshold=1.0, exits_in_use=(), num_exits=num_exits)
    return candidate_policies(num_exits)[chosen]


def _as_the_paper_says(user: Prepared, calibrating: NDArray[np.int64]) -> ExitPolicy:
    own = CalibrationSet(
        confidences=user.answers.confidences[:, calibrating],
        correct=user.answers.correct[:, calibrating],
        leaving_costs=user.answers.leaving_costs,
    )
    return prune(own, calibrate(own, SETTINGS), SETTINGS).policy


def _outcome(user: Prepared, policy: ExitPolicy, judged: NDArray[np.int64]) -> dict[str, float]:
    """Return what the user loses against the last exit, and the cost over the original network's."""
    exits = policy.exit_of(user.answers.confidences[:, judged])
    leaving = np.full(policy.num_exits + 1, np.nan)
    leaving[[*policy.exits_in_use, policy.num_exits]] = user.answers.leaving_costs(policy.exits_in_use)
    cost = leaving[exits].mean() / user.answers.leaving_costs(())[-1]
    return {"drop": float(user.excess[exits, judged].mean()), "cost": float(cost)}


def _unfamiliar(user: Prepared, policy: ExitPolicy) -> dict[str, float]:
    """Return which share of inputs of another kind reaches the last exit, and what is right of the answers."""
    found = {}
    for kind, (confidences, correct) in user.unfamiliar.items():
        exits, everyone = policy.exit_of(confidences), np.arange(confidences.shape[1])
        found[f"{kind}_last"] = float((exits == policy.num_exits).mean())
        found[f"{kind}_right"] = float(correct[exits, everyone].mean())
        found[f"{kind}_right_last"] = float(correct[-1].mean())
    return found


if __name__ == "__main__":
    run_program(main)
