"""The numbers behind the results page, kept beside it as CSV and JSON: the folders they come from are large."""

import shutil
from pathlib import Path

import pandas as pd

from persephonee.experiments.results_page.sharing_section import held_out_means
from persephonee.experiments.results_page.sources import Sources
from persephonee.multi_exit.atomic_files import write_text_atomically

DIGITS = "%.6g"


def keep_tables(sources: Sources, folder: Path) -> None:
    """Write what the page was made from into `folder`; what is there from other sources stays.

    figure-NAME-STUDY.csv has a row for each mark of a figure, run-NAME.json the summary of a simulation,
    sharing-NAME.csv the means over held-out users for each round, stage and exit; the tables of meta-learning and of
    membership inference keep their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for figures in sources.figures:
        for path in sorted(figures.glob("figure-*.parquet")):
            if not path.stem.endswith("-claims"):
                _write(pd.read_parquet(path), folder / f"{path.stem}.csv")
    for run in sources.runs:
        if run.has_held_out_users:
            _write(held_out_means(run), folder / f"sharing-{run.path.name}.csv")
        else:
            shutil.copyfile(run.path / "summary.json", folder / f"run-{run.path.name}.json")
    for path in (*sources.starts, *sources.attacks):
        shutil.copyfile(path, folder / path.name)


def _write(table: pd.DataFrame, path: Path) -> None:
    write_text_atomically(path, table.to_csv(index=False, float_format=DIGITS))
