"""One user shown as an example: the images whose answer changed, for the report page.

A federation's server never has a sample. Only `persephonee simulate`, which runs on the machine that owns the data,
can give the page an example user; it is kept in the run folder (figures/example_user.json), so that redrawing keeps it.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from persephonee.multi_exit.checked_json import read_with_digest, write_with_digest
from persephonee.server.errors import ServerError

CLOSE_UP_NAME = "example_user.json"


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
            raise ServerError(f"A example user shows images whose answer changed; this one was and is {self.after!r}.")


@dataclass(frozen=True, kw_only=True)
class ExampleUser:
    """One user, and images whose answer changed."""

    client_id: str
    examples: tuple[Example, ...]
    """As many as the caller chose to show, in the order in which to show them."""
    exit: int | None = None
    """The exit whose answers are shown; None: those of the whole policy."""
    corrected: int | None = None
    """Test images that went from wrong to right, when `examples` does not hold all of them."""
    worsened: int | None = None
    """Test images that went from right to wrong, likewise."""

    def to_json(self) -> dict[str, Any]:
        """Return what figures/example_user.json holds; images are PNGs in base64."""
        corrected = sum(example.after == example.label for example in self.examples)
        worsened = sum(example.before == example.label for example in self.examples)
        return {
            "client_id": self.client_id,
            "exit": self.exit,
            "corrected": corrected if self.corrected is None else self.corrected,
            "worsened": worsened if self.worsened is None else self.worsened,
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


def keep_example_user(figures: Path, example_user: ExampleUser) -> None:
    """Write the example user into the run's folder of figures.

    Raises:
        ServerError: an image is not uint8 or has another shape than [H, W], [1, H, W] or [3, H, W].
    """
    write_with_digest(figures / CLOSE_UP_NAME, example_user.to_json())


def read_example_user(figures: Path) -> dict[str, Any] | None:
    """Return the example user that was kept, as `ExampleUser.to_json` made it, or None when there is none.

    Raises:
        ServerError: the file is cut off or is no example user.
    """
    path = figures / CLOSE_UP_NAME
    if not path.exists():
        return None
    try:
        example_user = read_with_digest(path)
    except (OSError, ValueError) as error:
        raise ServerError(f"{path} is not whole JSON (cut off or overwritten): {error}; remove it.") from None
    wanted = {"client_id", "exit", "corrected", "worsened", "examples"}
    if set(example_user) != wanted or not _are_examples(example_user["examples"]):
        raise ServerError(f"{path} holds no example user; remove it.")
    return example_user


def _are_examples(examples: object) -> bool:
    keys = ("label", "before", "after", "png")
    return isinstance(examples, list) and all(
        isinstance(example, dict) and all(isinstance(example.get(key), str) for key in keys) for example in examples
    )


def _png(image: NDArray[np.uint8]) -> bytes:
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ServerError(f"An image of an example user holds {pixels.dtype} values, expected uint8.")
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    elif pixels.ndim == 3 and pixels.shape[0] == 3:
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    elif pixels.ndim != 2:
        raise ServerError(
            f"An image of an example user has shape {pixels.shape}, expected [H, W], [1, H, W] or [3, H, W]."
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
