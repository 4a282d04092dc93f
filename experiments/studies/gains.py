"""How far exits are above the original network or below it, with intervals over users.

The paper reads its figures in this way: an exit alone, as training left it, without a guard and without a policy.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from persephonee.experiments.studies.measurements import Measured
from persephonee.server.intervals import Estimate, draw_users, estimate

Stage = Literal["before", "after"]
COLUMNS: dict[Stage, str] = {"before": "before", "after": "unguarded"}


@dataclass(frozen=True, kw_only=True)
class ExitGain:
    """An early exit beside the original network.

    Attributes:
        exit: its number.
        points: its accuracy less the original's, in points, paired over users.
        macs: MACs of a network that ends there, in the original's.
        params: its parameters, likewise.
    """

    exit: int
    points: Estimate
    macs: float
    params: float

    def reaches(self, points: float = 0.0) -> bool:
        """Whether so many points above the original are not excluded by the interval."""
        return self.points.high >= points - 1e-9


def exit_gains(measured: Measured, scheme: str, stage: Stage = "after") -> tuple[ExitGain, ...]:
    """Return a row per early exit, before personalisation or after it."""
    table = measured.exits[(measured.exits.scheme == scheme) & measured.exits.whole]
    accuracies = table.pivot_table(index="user", columns="exit", values=COLUMNS[stage])
    last = int(table.exit.max())
    original = table[table.exit == last].set_index("user").before
    costs = table.groupby("exit")[["macs", "params"]].first()
    draws = draw_users(len(accuracies))
    return tuple(
        ExitGain(
            exit=exit,
            points=estimate(100 * (accuracies[exit] - original.loc[accuracies.index]).to_numpy(), draws),
            macs=float(costs.macs[exit] / costs.macs[last]),
            params=float(costs.params[exit] / costs.params[last]),
        )
        for exit in range(last)
    )


def cheapest_reaching(
    gains: tuple[ExitGain, ...], cost: Literal["macs", "params"] = "macs", points: float = 0.0
) -> ExitGain | None:
    """Return the cheapest exit that reaches so many points above the original; None where none does."""
    enough = [gain for gain in gains if gain.reaches(points)]
    return min(enough, key=lambda gain: (getattr(gain, cost), gain.exit), default=None)


def first_reaching(gains: tuple[ExitGain, ...]) -> ExitGain | None:
    """Return the first exit that reaches the original; None where none does."""
    return next((gain for gain in gains if gain.reaches()), None)


def original_accuracy(measured: Measured) -> float:
    """Return the mean over users of the original network's accuracy."""
    table = measured.exits[(measured.exits.exit == measured.network.num_exits) & measured.exits.whole]
    return float(table.groupby("user").before.first().mean())


def exit_means(measured: Measured, scheme: str) -> pd.DataFrame:
    """Return per exit, indexed by its number: mean over users of before and after, quartiles, macs and params.

    The last exit's row is the original network before, and after it what the user's class frequencies make of it.
    """
    table = measured.exits[(measured.exits.scheme == scheme) & measured.exits.whole]
    groups = table.groupby("exit")
    means = groups[["macs", "params"]].mean()
    for stage, column in COLUMNS.items():
        means[stage] = groups[column].mean()
        means[f"{stage}_p25"], means[f"{stage}_p75"] = groups[column].quantile(0.25), groups[column].quantile(0.75)
    return means


def mean_of(values: NDArray[np.float64]) -> Estimate:
    """Return the mean of one value per user with its interval."""
    return estimate(values, draw_users(len(values)))


def in_points(points: Estimate) -> str:
    """Return "+3.5 points (1.9 to 5.2)"."""
    return f"{points.mean:+.1f} points ({points.low:.1f} to {points.high:.1f})"
