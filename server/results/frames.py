"""A run as pandas frames, by one call."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persephonee.server.results.pretraining_curves import read_curves
from persephonee.server.results.results import summarise
from persephonee.server.results.run_folder import RunFolder
from persephonee.server.results.summary import Summary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFrames:
    """Everything that a run measured.

    Attributes:
        config: what determines the run.
        summary: the headline numbers of its last round.
        exits: a row per round, client, exit and stage ("before" or "after").
        clients: a row per round and client.
        rounds: a row per round.
        pretraining: a row per epoch and exit of the model's training; empty where it is not known.
        sharing: a row per round and client who shared exits; empty in other runs.
        held_out: a row per round, held-out user, exit and stage; empty in other runs.
    """

    config: Mapping[str, Any]
    summary: Summary
    exits: "pd.DataFrame"
    clients: "pd.DataFrame"
    rounds: "pd.DataFrame"
    pretraining: "pd.DataFrame"
    sharing: "pd.DataFrame"
    held_out: "pd.DataFrame"


def load_run(path: str | Path) -> RunFrames:
    """Return the run in a folder as pandas frames.

    Args:
        path: a run folder, such as runs/first.

    Raises:
        ServerError: the folder holds no run, a damaged one, or one that completed no round.
        ModuleNotFoundError: pandas is not installed; the extra `pandas` brings it.
    """
    import pandas as pd

    folder = RunFolder.open(Path(path))
    tables = folder.tables()
    curves = [
        {**{name: row[name] for name in ("epoch", "learning_rate", "train_loss")}, "exit": exit, "accuracy": accuracy}
        for row in read_curves(folder.path)
        for exit, accuracy in enumerate(row["validation_accuracy"])
    ]
    return RunFrames(
        config=folder.config,
        summary=summarise(tables, folder.config),
        exits=tables.exits.to_pandas(),
        clients=tables.clients.to_pandas(),
        rounds=tables.rounds.to_pandas(),
        pretraining=pd.DataFrame(curves, columns=["epoch", "learning_rate", "train_loss", "exit", "accuracy"]),
        sharing=tables.sharing.to_pandas(),
        held_out=tables.held_out.to_pandas(),
    )
