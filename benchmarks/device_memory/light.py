"""What a device without PyTorch takes: packages, memory of all of its processes, and seconds, on one core.

    python -m persephonee.benchmarks.device_memory.light --model MODEL --user ID DATA --out FOLDER

uv installs the built wheel into an empty environment. MODEL carries its graphs; DATA is of a kind that needs
no parquet. Memory is that of the process and its descendants together, looked at fifty times a second.
"""

import os
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
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.settings import DataSettings
from persephonee.multi_exit.atomic_files import check_writable, write_json_atomically
from persephonee.multi_exit.graphs.network import load_graph_network

SECONDS_BETWEEN_LOOKS = 0.02
WAYS = ("personalise", "device run")
ALWAYS_FREE = ["--power", "always", "--hours", "0-24", "--max-load", "1000", "--min-calibration", "5", "--every", "1"]
"""A device on which nothing puts a round off."""


@with_groups(data=data_settings)
def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of a model that carries its graphs.")],
    user: Annotated[str, typer.Option(help="Whose samples.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    data: DataSettings,
    images: Annotated[Path | None, typer.Option(help="A folder of images to watch, in place of the data.")] = None,
    due_after: Annotated[int, typer.Option(help="New samples after which a device's round is due.")] = 80,
    repetitions: Annotated[int, typer.Option(help="Of each measurement; the median counts.", min=1)] = 3,
) -> None:
    """Print a table and write it as JSON."""
    check_writable(out)
    if images is not None and not images.is_dir():
        raise typer.BadParameter(f"--images {images} is no folder; give one with images of the model's size.")
    load_graph_network(model)
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(folder))
        program = [str(python), "-m", "persephonee"]
        common = ["--model", str(model.absolute()), "--schedule", "fast", "--threads", "1"]
        options = data_options(data.to_flat())
        rows = [{"what": "installed packages", "megabytes": size_of(python) / 1e6, "seconds": 0.0}]
        for number in range(repetitions):
            if images is None:
                own = ["--store", f"{folder}/own{number}", "--user", user, *options]
                rows.append(measured("personalise", [*program, "personalise", *common, *own]))
            due = ["--min-new-samples", str(due_after), "--store", f"{folder}/life{number}"]
            shown = ["--user", user, *options] if images is None else ["--watch", str(images.absolute())]
            rows.append(measured("device run", [*program, "device", "run", *common, *ALWAYS_FREE, *due, *shown]))
    whats = [what for what in WAYS if any(row["what"] == what for row in rows)]
    middle = [rows[0]] + [sorted((r for r in rows if r["what"] == w), key=_size)[repetitions // 2] for w in whats]
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


def measured(what: str, command: list[str]) -> dict[str, object]:
    """Run a command on one core, a device until its first round is done.

    Returns:
        what; megabytes, the peak of it and its descendants; seconds, of a device until its first answer.

    Raises:
        CommandFailed: it failed, or a device did not personalise.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    is_device, peak, answered = what == "device run", 0, 0.0
    with tempfile.TemporaryFile("w+") as log:
        begin = time.perf_counter()
        process = psutil.Popen(command, env=environment, stdout=log, stderr=log, cwd="/")
        process.cpu_affinity([0])
        while process.poll() is None:
            peak = max(peak, _resident(process))
            log.seek(0)
            said = log.read() if is_device else ""
            answered = answered or (time.perf_counter() - begin if "exit" in said else 0.0)
            if "round done" in said:
                process.terminate()
                process.wait()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        seconds = time.perf_counter() - begin
        log.seek(0)
        said = log.read()
    if process.returncode or (is_device and "round done" not in said):
        raise CommandFailed(f"{what} ended with {process.returncode}: {said[-2000:]}")
    return {"what": what, "megabytes": peak / 1e6, "seconds": answered if is_device else seconds}


def _resident(process: psutil.Process) -> int:
    try:
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


if __name__ == "__main__":
    run_program(main)
