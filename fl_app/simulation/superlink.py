"""A SuperLink of our own: started for one run on a free port, with its own home, and stopped whatever happens.

Flower's default starts one SuperLink per machine, never stops it, and later runs reuse it with the folder and the
environment of whoever started it; actors then import that folder's code. This one belongs to one run.
"""

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from persephonee.fl_app.deployment.programs import program
from persephonee.fl_app.errors import RunFailedError
from persephonee.fl_app.simulation.surroundings import environment_of_flower

STARTUP_SECONDS = 60.0
LEAVING_SECONDS = 20.0
"""How long a run that has ended may take to stop Ray and hand in its log."""
ENDING_SECONDS = 10.0
"""How long a process may take to end when it is told to."""
_ERROR = re.compile(r"^(?:[A-Za-z_]+\.)*[A-Za-z_]*(?:Error|Exception): .+", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks our own SuperLink, and never a proxy that the environment names."""


class SuperLink:
    """A SuperLink for simulations; a context manager, which begins to start it and does not wait for it.

    Args:
        folder: a `scratch_folder` for its home, its working directory and Ray's files.
        log: file that its output and that of everything it starts is appended to, once it is asked for a run.
        ray_address: HOST:PORT of a Ray cluster that is there; without it, a Ray of its own is started and stopped.
        is_watched: the run's own lines go to the log as they come.
    """

    def __init__(self, folder: Path, log: Path, ray_address: str = "", *, is_watched: bool = False) -> None:
        self._home = folder / "home"
        # its real path, since that is what the system says of the processes that work in it
        self._work = folder.resolve() / "work"
        self._log = log
        # the run's folder may not be there before the model and the data have been looked at
        self._output = folder / "superlink.txt"
        self._is_used = False
        self._ray_address = ray_address
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = environment_of_flower(self._home, folder / "ray", ray_address, log if is_watched else None)

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True)
        self._work.mkdir()
        self._port = _free_port()
        connection = f'address = "127.0.0.1:{self._port}"\ninsecure = true'
        (self._home / "config.toml").write_text(f'[superlink]\ndefault = "own"\n\n[superlink.own]\n{connection}\n')
        address = ["--host", "127.0.0.1", "--port", str(self._port)]
        with self._output.open("ab") as log:
            self._process = subprocess.Popen(
                [program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess", *address],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._work,
                env=self._environment,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_simulating(self) -> bool:
        """Whether the process of a run, its ServerApp in it, is there."""
        return self.is_running and any(_is_simulation(process) for process in self._everything())

    def start_run(self, app: Path, num_nodes: int, gpu_fraction: float = 0.0) -> str:
        """Start a run of the app over so many simulated nodes, and return its id.

        Args:
            app: the app's folder.
            num_nodes: so many clients can be played.
            gpu_fraction: what each client takes of a GPU while it computes, in [0, 1].

        Raises:
            RunFailedError: the SuperLink does not start, or Flower refuses the app.
        """
        self._is_used = True
        self._wait_until_healthy()
        size = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
        size += f" client-resources-num-gpus={gpu_fraction}" if gpu_fraction else ""
        return str(self._flwr("run", str(app), "own", "--federation-config", size)["run-id"])

    def ending_of(self, run_id: str) -> str:
        """Return how a run ended, in words, or nothing if it has not; the answer takes a second of a core.

        Raises:
            RunFailedError: the SuperLink does not answer.
        """
        if not self.is_running:
            return "Flower's SuperLink stopped during the run"
        run = self._flwr("ls", "own", "--run-id", run_id)["runs"][0]
        state, details = str(run["status"]), " ".join(str(run["status-details"]).split())
        return f"the run ended as {state}: {details[:300]}" if state.startswith("finished") else ""

    def stop(self) -> None:
        """Stop the SuperLink and everything that it started, Ray included."""
        if self._process is None:
            return
        alive = _end(self._everything(), psutil.Process.terminate, ENDING_SECONDS)
        # Ray's agents outlive a Ray that was told to end, and what was starting is there by now
        _end({*alive, *self._everything()}, psutil.Process.kill, ENDING_SECONDS)
        self._ended()

    def stop_at_once(self) -> None:
        """Stop everything of a run that has ended well, whose processes have nothing to say any more.

        What runs on a Ray cluster of others is told to end, so that the cluster hears of it.
        """
        if self._ray_address:
            self.stop()
        elif self._process is not None:
            for _ in range(2):
                # a second time: what was just starting is there by now
                _end(self._everything(), psutil.Process.kill, ENDING_SECONDS)
            self._ended()

    def _ended(self) -> None:
        if self._process is not None:
            self._process.wait()
        self._process = None
        self._keep_output()

    def _keep_output(self) -> None:
        """Move what the SuperLink printed to the end of the run's log."""
        if self._is_used and self._output.exists():
            with self._log.open("ab") as log:
                log.write(self._output.read_bytes())
            self._output.unlink()

    def read_log(self, run_id: str) -> str:
        """Append what the ServerApp and the clients of a run printed to the log, once they have ended.

        Returns:
            The first error that stands there, or nothing.
        """
        end = time.monotonic() + LEAVING_SECONDS
        while time.monotonic() < end and self.is_simulating:
            time.sleep(0.2)
        text = _COLOURS.sub("", self._call("log", run_id, "own", "--show").stdout)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(text)
        error = _ERROR.search(text)
        return error[0] if error else ""

    def _everything(self) -> set[psutil.Process]:
        return _working_in(self._work)

    def _wait_until_healthy(self) -> None:
        end = time.monotonic() + STARTUP_SECONDS
        while self.is_running and time.monotonic() < end:
            try:
                with _DIRECT.open(f"http://127.0.0.1:{self._port}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self._keep_output()
        raise RunFailedError(f"Flower's SuperLink did not start; its log is {self._log}.")

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        done = self._call(*arguments, "--format", "json")
        answer = json.loads(done.stdout[done.stdout.index("{") :]) if "{" in done.stdout else {}
        if done.returncode or not answer.get("success"):
            reason = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
            raise RunFailedError(f"`flwr {arguments[0]}` failed: {' '.join(str(reason).split())[:300]}")
        return dict(answer)

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program("flwr"), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=self._work,
            env=self._environment,
            check=False,
        )


def stop_leftovers(folder: Path) -> None:
    """Kill what a SuperLink with this scratch folder started, its own process is gone or not."""
    for _ in range(2):
        # a second time: what was just starting is there by now
        _end(_working_in(folder.resolve() / "work"), psutil.Process.kill, ENDING_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _working_in(folder: Path) -> set[psutil.Process]:
    """Return all processes that work in the folder: a parent may be gone, and a title hides the environment."""
    return {process for process in psutil.process_iter() if _folder_of(process) == str(folder)}


def _folder_of(process: psutil.Process) -> str | None:
    try:
        return str(process.cwd())
    except (psutil.Error, OSError):
        # another user's, or gone
        return None


def _is_simulation(process: psutil.Process) -> bool:
    try:
        return any("flwr-simulation" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _end(processes: set[psutil.Process], how: Callable[[psutil.Process], None], seconds: float) -> list[psutil.Process]:
    """Tell processes to end, wait, and return those that did not."""
    for process in processes:
        # a process may be gone by now
        with contextlib.suppress(psutil.NoSuchProcess):
            how(process)
    end = time.monotonic() + seconds
    while (left := [process for process in processes if _is_alive(process)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _is_alive(process: psutil.Process) -> bool:
    """Return whether a process does anything: in a container perhaps nobody takes note of one that has ended."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
