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
        os.kill(worker, 0)
        parent.kill()
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    raise AssertionError("the process is still there after 30 s")
