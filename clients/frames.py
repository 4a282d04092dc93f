"""Where a device's frames come from: a folder that somebody fills, or a user's stream that is played again.

A source yields frames to answer, frames that are none, labels that arrive later, and None where there is nothing to do
just now.
"""

import csv
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clients.device_settings import Frame
from clients.device_state import ScriptedClock
from clients.errors import ClientSettingsError, ImageError
from data_partitions.samples import UserSamples

LABELS_FILE = "labels.csv"
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
SETTLE_S = 1.0
"""A file that is younger and does not decode may be half written: it is looked at again."""


@dataclass(frozen=True, kw_only=True)
class NoFrame:
    """Something that was to be a frame and is none.

    Attributes:
        key: its name.
        reason: a sentence.
    """

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LateLabel:
    """A label of a frame that came before.

    Attributes:
        key: of the frame.
        label: class.
    """

    key: str
    label: int


Item = Frame | NoFrame | LateLabel | None


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return an image file as uint8 [C, H, W].

    Colours become grey, and grey becomes three equal channels, as the model takes them; transparency is dropped. The
    size must be the model's: how to crop a photograph is not for this program to guess.

    Raises:
        ImageError: the file is no image, of another size, or of a mode with more than 8 bits a channel.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            if image.size != (width, height):
                got = f"{image.size[0]}x{image.size[1]}"
                raise ImageError(f"{path.name} is {got} px, expected {width}x{height}: crop and scale it first.")
            if image.mode not in _MODES:
                raise ImageError(f"{path.name} has the mode {image.mode}, expected 8 bits a channel: convert it first.")
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            raise ImageError(f"{path.name} has gone before it was read: leave files in place.") from None
        raise ImageError(f"{path.name} is no image that can be read: remove it, or write it again.") from None
    array = pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(array)


class WatchedFolder:
    """The images in a folder, the oldest first, and then those that arrive; `labels.csv` there holds `name,label` rows.

    Args:
        folder: that exists; hidden files in it are ignored, as half-written ones are often called.
        shape: (C, H, W) of an image.
        class_names: K names, or numbers as text.
        is_known: whether a frame of this name was answered before.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], class_names: tuple[str, ...], is_known: Callable[[str], bool]
    ) -> None:
        if not folder.is_dir():
            raise ClientSettingsError(f"there is no folder {folder} to watch: make it, or name another.")
        self._folder = folder
        self._shape = shape
        self._classes = {name: number for number, name in enumerate(class_names)}
        self._is_known = is_known
        self._labels: dict[str, str] = {}
        self._labels_read_at = -1

    def __iter__(self) -> Iterator[Item]:
        """Yield what there is, and None whenever everything was looked at; it never ends."""
        while True:
            yield from self._new_frames()
            # after the frames, since a label is for a sample that is stored
            yield from self._new_labels()
            yield None

    def _new_frames(self) -> Iterator[Item]:
        found = [path for path in self._folder.iterdir() if not path.name.startswith(".") and path.is_file()]
        ages = {path: path.stat().st_mtime for path in found if path.exists() and path.name != LABELS_FILE}
        for path in sorted(ages, key=lambda path: (ages[path], path.name)):
            if self._is_known(path.name):
                continue
            try:
                yield Frame(key=path.name, image=read_image(path, self._shape), label=self._label_of(path.name))
            except ImageError as error:
                if abs(time.time() - ages[path]) > SETTLE_S:
                    yield NoFrame(key=path.name, reason=str(error))

    def _label_of(self, name: str) -> int | None:
        return self._classes.get(self._labels.get(name, ""))

    def _new_labels(self) -> Iterator[Item]:
        path = self._folder / LABELS_FILE
        if not path.exists() or path.stat().st_mtime_ns == self._labels_read_at:
            return
        self._labels_read_at = path.stat().st_mtime_ns
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [(row[0].strip(), row[1].strip()) for row in csv.reader(file) if len(row) >= 2]
        for name, label in rows:
            if self._labels.get(name) == label or (name, label) == ("name", "label"):
                continue
            self._labels[name] = label
            if label in self._classes:
                yield LateLabel(key=name, label=self._classes[label])
            else:
                known = ", ".join(list(self._classes)[:5])
                yield NoFrame(key=f"{LABELS_FILE}:{name}", reason=f"the label {label!r} is no class: give {known}, ...")


class ReplayedUser:
    """A user's samples in a random order, one every so often on a clock that jumps from one to the next.

    Args:
        samples: the user's.
        labelled: share of the samples whose label the device is told, in [0, 1].
        clock: is set to each sample's time.
        every_s: simulated seconds from one sample to the next.
        speed: simulated over real time; 0 does not wait at all.
        is_known: whether a frame of this name was answered before.
        seed: of the order and of who is labelled.
        wait: sleeps for some seconds.
    """

    def __init__(
        self,
        samples: UserSamples,
        *,
        labelled: float,
        clock: ScriptedClock,
        every_s: float,
        speed: float,
        is_known: Callable[[str], bool],
        seed: int,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        if speed < 0 or every_s <= 0:
            raise ClientSettingsError(
                f"speed={speed:g} and a sample every {every_s:g} s do not do: give at least 0, and more than 0."
            )
        self._samples = samples
        self._labelled = labelled
        self._clock = clock
        self._every_s = every_s
        self._pause_s = every_s / speed if speed else 0.0
        self._is_known = is_known
        self._seed = seed
        self._wait = wait

    def __iter__(self) -> Iterator[Item]:
        """Yield the samples that were not answered before."""
        begin = self._clock.now
        order = sorted(range(len(self._samples)), key=lambda i: self._draw(i, "order"))
        for place, i in enumerate(order):
            self._clock.now = begin + place * self._every_s
            key = f"{self._samples.client_id}/{i}"
            if self._is_known(key):
                continue
            if self._pause_s:
                self._wait(self._pause_s)
            told = self._draw(i, "label") < self._labelled
            yield Frame(key=key, image=self._samples.images[i], label=int(self._samples.labels[i]) if told else None)

    def _draw(self, index: int, purpose: str) -> float:
        text = f"{self._seed}/{self._samples.client_id}/{index}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64
