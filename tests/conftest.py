import os
import tempfile
from pathlib import Path

import pytest
import torch

# a test has a core to itself and no more, and so has each program that it starts
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# the key with which a user's runs are sealed is no business of the tests
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="persephonee-tests-")

# no test cuts the power: to wait for the disk thousands of times would take minutes, and shows nothing
os.fsync = lambda descriptor: None

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("PERSEPHONEE_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


def real_data(name: str) -> Path:
    """Return the path of real data that lies beside the project; skip the test, by name, where it is missing."""
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"real data is missing: {path}")
    return path
