"""Run the plain Flower app once, from start to end.

python -m persephonee.benchmarks.simulation.plain_flower_run SETTINGS RESULT LOG
"""

import shutil
import signal
import sys
import time
from pathlib import Path

from persephonee.benchmarks.simulation import plain_flower
from persephonee.benchmarks.simulation.plain_flower.task import read_settings
from persephonee.fl_app.errors import RunFailedError
from persephonee.fl_app.settings.run_config import toml_value
from persephonee.fl_app.simulation.scratch import scratch_folder
from persephonee.fl_app.simulation.superlink import SuperLink

SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_BETWEEN_CHECKS = 10.0

_PYPROJECT = """\
[project]
name = "plain-flower"
version = "1"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "persephonee"

[tool.flwr.app.components]
serverapp = "plain_flower.server_app:app"
clientapp = "plain_flower.client_app:app"

[tool.flwr.app.config]
settings = {settings}
result = {result}
"""


def run(settings: Path, result: Path, log: Path) -> None:
    """Simulate all of the settings' users, one client per core.

    Raises:
        RunFailedError: Flower ended without a result.
    """
    with scratch_folder() as scratch:
        app = _write_app(scratch / "app", settings, result)
        with SuperLink(scratch, log) as superlink:
            run_id = superlink.start_run(app, len(read_settings(str(settings)).users))
            checked = time.monotonic()
            while not result.exists():
                time.sleep(SECONDS_BETWEEN_LOOKS)
                if time.monotonic() - checked > SECONDS_BETWEEN_CHECKS:
                    # asking takes a second of a core
                    ending = superlink.ending_of(run_id)
                    if ending and not result.exists():
                        raise RunFailedError(f"{ending} ({superlink.read_log(run_id)}); the log is {log}.")
                    checked = time.monotonic()


def _write_app(folder: Path, settings: Path, result: Path) -> Path:
    source = Path(plain_flower.__file__).parent
    target = folder / source.name
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    paths = {"settings": toml_value(str(settings)), "result": toml_value(str(result))}
    (folder / "pyproject.toml").write_text(_PYPROJECT.format(**paths))
    return folder


if __name__ == "__main__":
    # so that the SuperLink is stopped, whatever ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    run(*map(Path, sys.argv[1:]))
