"""One user looked at closely: the images whose answer changed, for the report page.

A federation's server never has a sample. Only `persephonee simulate`, which runs on the machine that owns the data,
can give the page a close-up; it is kept in the run folder (figures/close_up.json), so that redrawing keeps it.
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from persephonee.multi_exit.atomic_files import write_json_atomically
from persephonee.server.errors import ServerError

CLOSE_UP_NAME = "close_up.json"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One test image whose answer changed with personalisation."""

    image: NDArray[np.uint8]
    """Pixels, shape [H, W] or [C, H, W] with C of 1 or 3, uint8."""
    label: str
    """The true class, as a reader knows it ("a", "7")."""
    before: str
    """The class that the global exits answered."""
    after: str
    """The class that the personal exits answer; another one than `before`."""

    def __post_init__(self) -> None:
        if self.before == self.after:
            raise ServerError(f"A close-up shows images whose answer changed; this one was and is {self.after!r}.")


@dataclass(frozen=True, kw_only=True)
class CloseUp:
    """One user, and images whose answer changed."""

    client_id: str
    examples: tuple[Example, ...]
    """As many as the caller chose to show, in the order in which to show them."""
    exit: int | None = None
    """The exit whose answers are shown; None: those of the whole policy."""
    mended: int | None = None
    """Test images that went from wrong to right, when `examples` does not hold all of them."""
    broken: int | None = None
    """Test images that went from right to wrong, likewise."""

    def to_json(self) -> dict[str, Any]:
        """Return what figures/close_up.json holds; images are PNGs in base64."""
        mended = sum(example.after == example.label for example in self.examples)
        broken = sum(example.before == example.label for example in self.examples)
        return {
            "client_id": self.client_id,
            "exit": self.exit,
            "mended": mended if self.mended is None else self.mended,
            "broken": broken if self.broken is None else self.broken,
            "examples": [
                {
                    "label": example.label,
                    "before": example.before,
                    "after": example.after,
                    "png": base64.b64encode(_png(example.image)).decode(),
                }
                for example in self.examples
            ],
        }


def keep_close_up(figures: Path, close_up: CloseUp) -> None:
    """Write the close-up into the run's folder of figures.

    Raises:
        ServerError: an image is not uint8 or has another shape than [H, W], [1, H, W] or [3, H, W].
    """
    write_json_atomically(figures / CLOSE_UP_NAME, close_up.to_json())


def read_close_up(figures: Path) -> dict[str, Any] | None:
    """Return the close-up that was kept, as `CloseUp.to_json` made it, or None when there is none.

    Raises:
        ServerError: the file is cut off or is no close-up.
    """
    path = figures / CLOSE_UP_NAME
    if not path.exists():
        return None
    try:
        close_up = json.loads(path.read_bytes())
    except ValueError as error:
        raise ServerError(f"{path} is not whole JSON (cut off or overwritten): {error}; remove it.") from None
    wanted = {"client_id", "exit", "mended", "broken", "examples"}
    if not isinstance(close_up, dict) or set(close_up) != wanted or not _are_examples(close_up["examples"]):
        raise ServerError(f"{path} holds no close-up of a user; remove it.")
    return close_up


def _are_examples(examples: object) -> bool:
    keys = ("label", "before", "after", "png")
    return isinstance(examples, list) and all(
        isinstance(example, dict) and all(isinstance(example.get(key), str) for key in keys) for example in examples
    )


def _png(image: NDArray[np.uint8]) -> bytes:
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ServerError(f"An image of a close-up holds {pixels.dtype} values, expected uint8.")
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    elif pixels.ndim == 3 and pixels.shape[0] == 3:
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    elif pixels.ndim != 2:
        raise ServerError(f"An image of a close-up has shape {pixels.shape}, expected [H, W], [1, H, W] or [3, H, W].")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
