"""What a run needs to go on after a kill, besides its tables: one file for each round, replaced as a whole.

checkpoint/round-000003.safetensors holds the global exits and the strategy's moments after round 3 and, as JSON in its
header, the run's name, the secret of the noise, who never takes part and who contributed. It is written before the
round's tables; a round counts once rounds.parquet names it, so a file of a later round is of a round that will be
repeated.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from persephonee.fl_app.errors import AppError
from persephonee.multi_exit.atomic_files import make_private_folder, write_bytes_atomically
from persephonee.multi_exit.checked_json import arrays_header, checked_state, parse_json_object

FOLDER = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after a round."""

    round: int
    """0 before the first one."""
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    """Names the run in messages, whatever process serves it."""
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    """What the server's noise follows from."""
    held_out: Sequence[str] | None = None
    """Clients that never take part, also where they are missing for a while; None before they were drawn."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Of the sharing; JSON types only."""
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def write(self, run_dir: Path) -> None:
        """Write the checkpoint, and remove those from before the last round, which nothing asks for any more."""
        values = {"round": self.round, "run": self.run, "secret": self.secret, "held_out": self.held_out}
        values["info"] = dict(self.info)
        state = json.dumps(values)
        header = arrays_header(state, self.arrays)
        make_private_folder(run_dir / FOLDER)
        # the secret of the noise is nobody else's to read
        write_bytes_atomically(
            _path(run_dir, self.round), safetensors.numpy.save(dict(self.arrays), metadata=header), private=True
        )
        for path in (run_dir / FOLDER).glob("round-*.safetensors"):
            if path.name < _path(run_dir, self.round - 1).name:
                path.unlink(missing_ok=True)

    @classmethod
    def read(cls, run_dir: Path, number: int) -> "Checkpoint":
        """Read the checkpoint of a round.

        Raises:
            AppError: it is missing or damaged.
        """
        path = _path(run_dir, number)
        try:
            arrays = safetensors.numpy.load_file(path)
            with safetensors.safe_open(path, framework="numpy") as file:
                header = file.metadata()
            values = parse_json_object(checked_state(header, arrays))
            return cls(arrays=arrays, **values)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise AppError(f"{path} is missing or damaged ({error}): the run cannot go on, start it anew.") from None


def begin(run_dir: Path, completed: tuple[int, ...]) -> Checkpoint:
    """Return the checkpoint to go on from: that of the last completed round, or a new one, not written yet.

    Raises:
        AppError: the checkpoint of the last completed round is missing or damaged.
    """
    if not completed and not _path(run_dir, 0).exists():
        return Checkpoint(round=0)
    return Checkpoint.read(run_dir, completed[-1] if completed else 0)


def _path(run_dir: Path, number: int) -> Path:
    return run_dir / FOLDER / f"round-{number:06d}.safetensors"
