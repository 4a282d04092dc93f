"""What `persephonee device run` has resident through a round.

    python -m persephonee.benchmarks.device_memory.benchmark --model MODEL DATA

The device is a process of its own that replays a user until it has personalised; the peak is what Linux says of it.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from persephonee.benchmarks.bench_models import SOURCES
from persephonee.benchmarks.machine import describe_machine, peak_resident_bytes
from persephonee.benchmarks.result_tables import check_place, write_result
from persephonee.benchmarks.users import (
    PERSEPHONEE,
    ROOT,
    CommandFailed,
    data_name,
    data_options,
    environment,
    load_user,
    run_command,
)
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import data_settings
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.settings import DataSettings
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.storage import load_network

SECONDS_BETWEEN_LOOKS = 0.02
_PRINT_PEAK = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"


@with_groups(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    users: Annotated[int, typer.Option(help="Devices, one after the other.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Of the devices.")] = 0,
) -> None:
    """Measure devices with the largest users that the model does not know."""
    check_place(out, "device")
    network, metadata = load_network(model, SOURCES)
    partitions = open_fitting(data, network, metadata)
    sizes = dict(zip(partitions.client_ids, partitions.counts, strict=True))
    known = set(metadata.trained_on)
    largest = sorted((user for user in sizes if user not in known), key=lambda user: (-sizes[user], user))[:users]
    if not largest:
        raise typer.BadParameter(f"the model was trained on all users of {partitions.name}: name other data.")
    rows = []
    for user in largest:
        samples = load_user(partitions, user)
        rows.append({"user": user, "samples": len(samples), **measure_device(model, data, user, len(samples), seed)})
    about = {
        "machine": describe_machine(),
        "dataset": data_name(data),
        "backbone": network.spec.backbone.split(":")[-1],
        "input_size": network.spec.input_size,
        "import_bytes": 1024 * int(run_command([sys.executable, "-c", f"import torch; {_PRINT_PEAK}"]).split()[-1]),
    }
    write_result(out, "device", about, {"devices": pd.DataFrame(rows)})


def measure_device(model: Path, data: DataSettings, user: str, samples: int, seed: int) -> dict[str, Any]:
    """Run a device over a user's samples, one round being due when half of them have come.

    Returns:
        peak_bytes of the process, rounds done, frames answered.

    Raises:
        CommandFailed: the device failed, or did not personalise.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = ["--store", f"{folder}/device"]
        due = ["--power", "always", "--hours", "0-24", "--min-new-samples", str(max(2, samples // 2))]
        due += ["--min-calibration", "5", "--max-load", "1000"]
        command = [*PERSEPHONEE, "device", "run", "--model", str(model.absolute()), *store, "--user", user]
        command += [*data_options(data.to_flat()), *due, "--quiet", "--seed", str(seed), "--sources", ",".join(SOURCES)]
        peak = _peak_of(command, Path(folder) / "errors.txt")
        status = json.loads(run_command([*PERSEPHONEE, "device", "status", *store, "--json"]))
    if not status["rounds"]:
        raise CommandFailed(f"the device of user {user} did not personalise within {samples} samples.")
    return {"peak_bytes": peak, "rounds": status["rounds"], "frames": status["frames"]}


def _peak_of(command: list[str], errors: Path) -> int:
    """Return the peak of a process, which is asked for it until it ends: its figure only grows."""
    peak = 0
    with errors.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=log)
        while process.poll() is None:
            peak = max(peak, peak_resident_bytes(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise CommandFailed(f"the device ended with {process.returncode}: {errors.read_text().strip()[-2000:]}")
    return peak


if __name__ == "__main__":
    run_program(main)
