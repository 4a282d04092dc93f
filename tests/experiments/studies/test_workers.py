"""The processes that measure users: none is left behind."""

import os
import subprocess
import sys
import time

SCRIPT = """
import multiprocessing, os, threading, time
from concurrent.futures import ProcessPoolExecutor
from persephonee.experiments.studies.workers import _end_with_parent

def begin():
    threading.Thread(target=_end_with_parent, daemon=True).start()

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def test_a_process_that_measures_ends_with_the_one_that_was_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert _is_there(worker)
        parent.kill()
    patience = 300
    while _is_there(worker) and patience:
        patience -= 1
        time.sleep(0.1)
    assert not _is_there(worker)


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
