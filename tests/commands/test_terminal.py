"""The command line on terminals, and in files, that cannot show every letter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("-m", "persephonee", "inspect", "--backbone", "mobilenet_v2", "--num-exits", "2", "--input-size", "32")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_encode_is_replaced(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *WORDS, "--num-classes", "10"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "exit" in done.stdout.decode(encoding)
    # the name of a file that is not there has letters of its own
    refused = subprocess.run([sys.executable, *WORDS[:3], "Müdüll→"], env=environment, capture_output=True)
    assert (refused.returncode, refused.stderr[:7]) == (2, b"Error: ")
    assert b"Traceback" not in refused.stderr
