"""Runs side by side: accuracy, cost, and users helped and hurt, paired over the users whom all of them measured.

Pure functions: run folders in, dataclasses out. The first run is the one that the others are compared with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persephonee.server.errors import ServerError
from persephonee.server.intervals import Estimate, draw_users, estimate
from persephonee.server.results.run_folder import CHANGED, RunFolder
from persephonee.server.results.summary import Change
from persephonee.server.results.table_schemas import Row

SAME_DATA = (
    *("dataset", "hub-name", "user-column", "label-column", "image-column", "data-seed"),
    *("samples-per-user", "label-skew-width", "image-size", "test-samples", "test-samples-from", "test-fraction"),
)
"""Settings that have to be equal, because users or their test samples would be others; a path may have moved."""

_NO_SETTINGS = frozenset({"versions", "machine", "code", "network", "model", "data-path", CHANGED})


@dataclass(frozen=True, kw_only=True)
class ComparedExit:
    """One exit of a run over the users that were paired."""

    exit: int
    is_last: bool
    accuracy: Estimate
    """Of this exit alone, with the personal weights."""
    exit_rate: float | None
    """Mean fraction of samples that leave here."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A run against the first one, user by user."""

    accuracy: Estimate
    """Of the policies."""
    mean_macs: Estimate
    change: Change
    """Fractions of users whose policy is more accurate, less accurate, and as accurate as in the first run."""
    gains: tuple[float, ...]
    """Each user's difference in accuracy, in the order of `Comparison.users`."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run over the users that were paired."""

    name: str
    round: int
    accuracy: Estimate
    """Of the policy with the personal exits, which is what is deployed."""
    accuracy_original: Estimate
    """Of the last exit alone."""
    mean_macs: Estimate
    cost_fraction: Estimate
    """Of the original network's cost."""
    against_original: Change
    exits: tuple[ComparedExit, ...]
    difference: Difference | None
    """None for the first run."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs over the same users."""

    users: tuple[str, ...]
    runs: tuple[ComparedRun, ...]
    settings: dict[str, tuple[str, ...]]
    """The settings in which the runs differ, and each run's value."""
    remarks: tuple[str, ...]
    """What a reader has to know before reading a difference."""


@dataclass(frozen=True)
class _Measured:
    """The last completed round of a run."""

    name: str
    config: Mapping[str, Any]
    round: int
    users: Mapping[str, Row]
    exits: Sequence[Row]


def compare(folders: Sequence[RunFolder], seed: int = 0) -> Comparison:
    """Return the last rounds of runs side by side.

    Args:
        folders: two runs or more; the first is the one that the others are compared with.
        seed: of the bootstrap.

    Raises:
        ServerError: the runs cannot be compared, and why.
    """
    if len(folders) < 2:
        raise ServerError("One run alone cannot be compared: name two run folders or more.")
    paths = [folder.path.resolve() for folder in folders]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ServerError(f"{twice} was named twice: name each run once.")
    measured = [_measured(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    for other in measured[1:]:
        _refuse_other_data(measured[0], other)
    users = _paired_users(measured)
    draws = draw_users(len(users), seed)
    return Comparison(
        users=users,
        runs=tuple(_compared(run, measured[0], users, draws) for run in measured),
        settings=_differing_settings([run.config for run in measured]),
        remarks=_remarks(measured, users),
    )


def _measured(folder: RunFolder, name: str) -> _Measured:
    tables = folder.tables()
    if not tables.round_numbers:
        raise ServerError(f"{folder.path} completed no round: there is nothing to compare yet.")
    last = tables.round_numbers[-1]
    needed = ("accuracy_original", "accuracy_after", "mean_macs", "original_macs", "num_test")
    users = {
        row["client_id"]: row
        for row in tables.clients_of(last)
        if row["status"] == "ok" and all(row[column] is not None for column in needed)
    }
    exits = [row for row in tables.exits_of(last) if row["stage"] == "after" and row["accuracy"] is not None]
    return _Measured(name, folder.config, last, users, exits)


def _names(folders: Sequence[RunFolder]) -> list[str]:
    names = [folder.path.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder.path) for folder in folders]


def _refuse_other_data(first: _Measured, other: _Measured) -> None:
    for key in SAME_DATA:
        # versions before a setting existed did not record it
        if key in first.config and key in other.config and first.config[key] != other.config[key]:
            raise ServerError(
                f"{first.name} has {key}={first.config[key]} and {other.name} {key}={other.config[key]}: their test "
                "samples are others, so compare runs on the same data."
            )
    classes = [_num_classes(run.config) for run in (first, other)]
    if None not in classes and classes[0] != classes[1]:
        raise ServerError(
            f"The model of {first.name} tells {classes[0]} classes apart and that of {other.name} {classes[1]}: "
            "compare runs with the same classes."
        )
    for user in sorted(first.users.keys() & other.users.keys()):
        counts = [run.users[user]["num_test"] for run in (first, other)]
        if counts[0] != counts[1]:
            raise ServerError(
                f"User {user} has {counts[0]} test samples in {first.name} and {counts[1]} in {other.name}: the data "
                "are others, so compare runs on the same data."
            )


def _num_classes(config: Mapping[str, Any]) -> Any:
    try:
        return json.loads(config["network"])["num_classes"]
    except (KeyError, TypeError, ValueError):
        return None


def _paired_users(runs: Sequence[_Measured]) -> tuple[str, ...]:
    common = set.intersection(*(set(run.users) for run in runs))
    if len(common) < 2:
        counts = ", ".join(f"{run.name}: {len(run.users)}" for run in runs)
        raise ServerError(
            f"The runs have {len(common)} users with a result in common ({counts}), and two are needed: "
            "compare runs of the same users."
        )
    return tuple(sorted(common))


def _compared(run: _Measured, first: _Measured, users: tuple[str, ...], draws: NDArray[np.int64]) -> ComparedRun:
    accuracy, original, macs, whole = (
        _column(run, users, name) for name in ("accuracy_after", "accuracy_original", "mean_macs", "original_macs")
    )
    difference = None
    if run is not first:
        before, cost = (_column(first, users, name) for name in ("accuracy_after", "mean_macs"))
        difference = Difference(
            accuracy=estimate(accuracy - before, draws),
            mean_macs=estimate(macs - cost, draws),
            change=_change(before, accuracy),
            gains=tuple(float(gain) for gain in accuracy - before),
        )
    return ComparedRun(
        name=run.name,
        round=run.round,
        accuracy=estimate(accuracy, draws),
        accuracy_original=estimate(original, draws),
        mean_macs=estimate(macs, draws),
        cost_fraction=estimate(macs / whole, draws),
        against_original=_change(original, accuracy),
        exits=_compared_exits(run, users, draws),
        difference=difference,
    )


def _compared_exits(run: _Measured, users: tuple[str, ...], draws: NDArray[np.int64]) -> tuple[ComparedExit, ...]:
    by_exit: dict[int, dict[str, Row]] = {}
    for row in run.exits:
        by_exit.setdefault(row["exit"], {})[row["client_id"]] = row
    found = []
    for number, rows in sorted(by_exit.items()):
        if not rows.keys() >= set(users):
            continue
        rates = [rows[user]["exit_rate"] for user in users if rows[user]["exit_rate"] is not None]
        found.append(
            ComparedExit(
                exit=number,
                is_last=number == max(by_exit),
                accuracy=estimate(np.array([rows[user]["accuracy"] for user in users]), draws),
                exit_rate=float(np.mean(rates)) if rates else None,
            )
        )
    return tuple(found)


def _column(run: _Measured, users: tuple[str, ...], name: str) -> NDArray[np.float64]:
    return np.array([run.users[user][name] for user in users], dtype=np.float64)


def _change(before: NDArray[np.float64], after: NDArray[np.float64]) -> Change:
    change = Change.between(zip(before.tolist(), after.tolist(), strict=True))
    assert change is not None  # there are two users or more
    return change


def _differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    keys = sorted(set().union(*configs) - _NO_SETTINGS)
    values = {key: tuple(str(config.get(key, "–")) for config in configs) for key in keys}
    return {key: of_runs for key, of_runs in values.items() if len(set(of_runs)) > 1}


def _remarks(runs: Sequence[_Measured], users: tuple[str, ...]) -> tuple[str, ...]:
    remarks = []
    left_out = {run.name: len(run.users) - len(users) for run in runs if len(run.users) > len(users)}
    if left_out:
        listed = ", ".join(f"{count} of {name}" for name, count in left_out.items())
        remarks.append(f"Users without a result in every run are left out: {listed}.")
    if len({run.config.get("seed") for run in runs}) > 1:
        remarks.append("The runs have different seeds, so a user's test samples are not the same in all of them.")
    if len({run.config.get("model") for run in runs}) > 1:
        remarks.append("The runs began with different models, so a difference is also one between the models.")
    if len({run.round for run in runs}) > 1:
        remarks.append("The runs have different numbers of rounds; each is taken at its last one.")
    if len({run.config.get("data-path") for run in runs}) > 1:
        remarks.append("The runs name different paths of their data; users and counts of test samples agree.")
    return tuple(remarks)
