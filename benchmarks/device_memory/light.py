"""What a device without PyTorch takes: packages, memory of all of its processes, and seconds, on one core.

    python -m persephonee.benchmarks.device_memory.light --model MODEL --user ID DATA --out FOLDER

uv installs the built wheel into an empty environment. MODEL carries its graphs; DATA is of a kind that needs
no parquet. Memory is that of the process and its descendants together, looked at fifty times a second.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

from persephonee.benchmarks.machine import describe_machine
from persephonee.benchmarks.users import ROOT, CommandFailed, data_options, run_command
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import data_settings
from persephonee.data_partitions.settings import DataSettings
from persephonee.multi_exit.atomic_files import write_json_atomically

SECONDS_BETWEEN_LOOKS = 0.02
WAYS = ("personalise", "device run")


@with_groups(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of a model that carries its graphs.")],
    user: Annotated[str, typer.Option(help="Whose samples.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    images: Annotated[Path | None, typer.Option(help="A folder of images to watch, in place of the data.")] = None,
    repetitions: Annotated[int, typer.Option(help="Of each measurement; the median counts.", min=1)] = 3,
) -> None:
    """Print a table and write it as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(folder))
        program = [str(python), "-m", "persephonee"]
        common = ["--model", str(model.absolute()), "--schedule", "fast", "--threads", "1"]
        options = data_options(data.to_flat())
        rows = [{"what": "installed packages", "megabytes": size_of(python) / 1e6, "seconds": 0.0}]
        for number in range(repetitions):
            store = ["--store", f"{folder}/own{number}"]
            rows.append(measured("personalise", [*program, "personalise", *common, *store, "--user", user, *options]))
            due = ["--power", "always", "--hours", "0-24", "--min-new-samples", "40", "--min-calibration", "5"]
            due += ["--max-load", "1000", "--every", "1", "--quiet", "--store", f"{folder}/life{number}"]
            shown = ["--user", user, *options] if images is None else ["--watch", str(images.absolute())]
            rows.append(
                measured("device run", [*program, "device", "run", *common, *due, *shown], watches=bool(images))
            )
            status = json.loads(run_command([*program, "device", "status", *due[-2:], "--json"]))
            if not status["rounds"]:
                raise CommandFailed(f"the device of user {user} did not personalise.")
    middle = [rows[0]] + [sorted((r for r in rows if r["what"] == w), key=_size)[repetitions // 2] for w in WAYS]
    for row in middle:
        typer.echo(f"{row['what']}: {row['megabytes']:.0f} MB, {row['seconds']:.1f} s")
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(out / "light.json", {"machine": describe_machine(), "rows": middle})


def _size(row: dict[str, object]) -> float:
    return float(row["megabytes"])  # type: ignore[arg-type]


def install(folder: Path) -> Path:
    """Build the wheel, install it into an empty environment, and return its Python."""
    environment = folder / "environment"
    run_command(["uv", "build", "--quiet", "--wheel", "--out-dir", str(folder / "wheel"), str(ROOT)])
    run_command(["uv", "venv", "--quiet", "--python", sys.executable, str(environment)])
    (wheel,) = (folder / "wheel").glob("*.whl")
    run_command(["uv", "pip", "install", "--quiet", "--python", str(environment / "bin" / "python"), str(wheel)])
    return environment / "bin" / "python"


def size_of(python: Path) -> int:
    """Return the bytes of what is installed."""
    (packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())


def measured(what: str, command: list[str], *, watches: bool = False) -> dict[str, object]:
    """Run a command on one core; return its seconds and the peak of what it and its descendants have resident."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    begin, peak = time.perf_counter(), 0
    process = psutil.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
    )
    process.cpu_affinity([0])
    while process.poll() is None:
        peak = max(peak, _resident(process))
        if watches and time.perf_counter() - begin > 120:
            process.terminate()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise CommandFailed(f"{what} ended with {process.returncode}: {process.stdout.read()[-2000:]}")
    return {"what": what, "megabytes": peak / 1e6, "seconds": time.perf_counter() - begin}


def _resident(process: psutil.Process) -> int:
    try:
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


if __name__ == "__main__":
    typer.run(main)
