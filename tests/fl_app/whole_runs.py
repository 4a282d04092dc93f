"""Whole runs in one process, for tests: the run folder of one, its tables, and settings with a change."""

import pandas as pd

from persephonee.fl_app.server_side import server_app
from persephonee.fl_app.settings.app_settings import AppSettings


def run(grid, settings):
    return server_app.serve(grid, settings, settings.paths.model, settings.paths.run_dir).parent


def table(run_dir, name, without=()):
    return pd.read_parquet(run_dir / f"{name}.parquet").drop(columns=list(without))


def changed(settings, **more):
    return AppSettings.from_run_config(
        {**settings.to_run_config(), **{k.replace("_", "-"): v for k, v in more.items()}}
    )


def with_status(run_dir):
    return table(run_dir, "clients").set_index("client_id").status
