"""The parts of a benchmark run: each a command of its own, whose failure loses none of the others.

OUT/parts/NAME.json says how a part went, OUT/parts/NAME.txt what it printed.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from persephonee.benchmarks.users import ROOT, environment
from persephonee.multi_exit.atomic_files import write_json_atomically

FOLDER = "parts"
DONE, FAILED, SKIPPED = "done", "failed", "left out"
LONGEST_SECONDS = 1500
ENDING_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command.

    Attributes:
        name: name of its files, without the ending.
        command: the program and its arguments; empty where the part cannot run here.
        missing: one sentence on why it cannot run here; empty where it can.
    """

    name: str
    command: tuple[str, ...] = ()
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a part went: "done", "failed" or "left out", why, and how long it took."""

    name: str
    state: str
    reason: str = ""
    seconds: float = 0.0


def run_part(part: Part, out: Path) -> Outcome:
    """Run a part, and write how it went."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    if part.missing:
        outcome = Outcome(name=part.name, state=SKIPPED, reason=part.missing)
    else:
        log = folder / f"{part.name}.txt"
        status = _run(part.command, log)
        reason = f"it took longer than {LONGEST_SECONDS} s" if status is None else _last_line(log) if status else ""
        state = DONE if status == 0 else FAILED
        outcome = Outcome(name=part.name, state=state, reason=reason, seconds=time.perf_counter() - begin)
    write_json_atomically(folder / f"{part.name}.json", {**asdict(outcome), "number": len(read_outcomes(out))})
    return outcome


def _run(command: Sequence[str], log: Path) -> int | None:
    """Return the exit status of a command, None where it took too long; nothing that it started is left."""
    with log.open("w") as file:
        # a session of its own, so that all of it can be ended
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=file, stderr=file, start_new_session=True
        )
        try:
            return process.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask all processes of a session to end, and kill those that do not."""
    end = time.monotonic() + ENDING_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < end:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_done(part: Part, out: Path) -> bool:
    """Whether the part ran to its end in an earlier run."""
    return any(outcome.name == part.name and outcome.state == DONE for outcome in read_outcomes(out))


def read_outcomes(out: Path) -> list[Outcome]:
    """Return how the parts went, in the order in which they ran first."""
    values = [json.loads(path.read_text()) for path in (out / FOLDER).glob("*.json")]
    values.sort(key=lambda value: (value.pop("number"), value["name"]))
    return [Outcome(**value) for value in values]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # a path of this machine would stand in the page
    return lines[-1].replace(str(ROOT), ".").replace(str(Path.home()), "~")[:300] if lines else "it printed nothing"
