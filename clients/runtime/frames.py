"""Where a device's frames come from: a folder that somebody fills, or a user's stream that is played again.

A source yields frames to answer, frames that are none, labels that arrive later, and None where there is nothing to do
just now.
"""

import csv
import math
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from persephonee.clients.errors import ClientSettingsError, ImageError
from persephonee.clients.runtime.device_settings import Frame
from persephonee.clients.runtime.device_state import ScriptedClock
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.seeds import uniform_draw

LABELS_FILE = "labels.csv"
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
SETTLE_S = 1.0
"""A file that is younger and does not decode may be half written: it is looked at again."""

_YEAR_S = 365 * 86_400.0
_LONGEST_LIFE_S = 1000 * _YEAR_S
_LONGEST_PAUSE_S = _YEAR_S

_LONGEST_NAME = 255
"""Of a file. A field of `labels.csv` that is longer is what an open quote has swallowed: no event repeats all of it."""


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


def key_of(name: str) -> str:
    """Return a file's name as text that can be stored and printed; two names never have the same key.

    A name need not be UTF-8, and Python keeps the bytes that are not as lone surrogates. They become /x and two digits:
    no name has a slash.
    """
    return re.sub("[\udc80-\udcff]", lambda odd: f"/x{ord(odd[0]) - 0xDC00:02x}", name)


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return an image file as uint8 [C, H, W].

    Colours become grey, and grey becomes three equal channels, as the model takes them; transparency is dropped. The
    size must be the model's: how to crop a photograph is not for this program to guess.

    Raises:
        ImageError: the file is no image, of another size, or of a mode with more than 8 bits a channel.
    """
    channels, height, width = shape
    name = key_of(path.name)
    pixels: NDArray[np.uint8] | None = None
    try:
        with Image.open(path) as image:
            size, mode = image.size, image.mode
            if size == (width, height) and mode in _MODES:
                pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise ImageError(f"{name} has gone before it was read: leave files in place.") from None
    # Pillow's decoders raise whatever odd bytes lead them to: ValueError, RuntimeError, DecompressionBombError, ...
    except Exception:
        raise ImageError(f"{name} is no image that can be read: remove it, or write it again.") from None
    if size != (width, height):
        raise ImageError(f"{name} is {size[0]}x{size[1]} px, expected {width}x{height}: crop and scale it first.")
    if pixels is None:
        raise ImageError(f"{name} has the mode {mode}, expected 8 bits a channel: convert it first.")
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
        found = [path for path in self._folder.iterdir() if not path.name.startswith(".") and path.name != LABELS_FILE]
        ages = {path: written for path in found if (written := _written_at(path)) is not None}
        for path in sorted(ages, key=lambda path: (ages[path], path.name)):
            key = key_of(path.name)
            if self._is_known(key):
                continue
            try:
                yield Frame(key=key, image=read_image(path, self._shape), label=self._label_of(key))
            except ImageError as error:
                if abs(time.time() - ages[path]) > SETTLE_S:
                    yield NoFrame(key=key, reason=str(error))

    def _label_of(self, key: str) -> int | None:
        return self._classes.get(self._labels.get(key, ""))

    def _new_labels(self) -> Iterator[Item]:
        path = self._folder / LABELS_FILE
        try:
            written_at = path.stat().st_mtime_ns
            if written_at == self._labels_read_at:
                return
            rows, fault = _read_rows(path)
        except FileNotFoundError:
            return
        except OSError as error:
            reason = f"{LABELS_FILE} cannot be read ({error.strerror}): give a file that this program may read"
            yield NoFrame(key=f"{LABELS_FILE}:{error.strerror}", reason=reason)
            return
        self._labels_read_at = written_at
        for key, label in rows:
            if self._labels.get(key) == label or (key, label) == ("name", "label"):
                continue
            self._labels[key] = label
            if label in self._classes:
                yield LateLabel(key=key, label=self._classes[label])
            else:
                known = ", ".join(list(self._classes)[:5])
                reason = f"the label {label!r} is no class: give {known}, ..."
                yield NoFrame(key=f"{LABELS_FILE}:{key},{label}", reason=reason)
        if fault:
            yield NoFrame(key=f"{LABELS_FILE}:{fault}", reason=fault)


def _written_at(path: Path) -> float | None:
    """Return when a file was written, in seconds since 1970; None where there is none, or none any more."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime if stat.S_ISREG(found.st_mode) else None


def _read_rows(path: Path) -> tuple[list[tuple[str, str]], str]:
    """Return the keys and labels of a labels file up to the row that is none, and what is wrong there, if anything."""
    rows: list[tuple[str, str]] = []
    # surrogates, so that a name in another encoding is the name of its file
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader, line = csv.reader(file), 1
        try:
            for row in reader:
                if len(row) >= 2:
                    key, label = (key_of(field.strip()[:_LONGEST_NAME]) for field in row[:2])
                    rows.append((key, label))
                line = reader.line_num + 1
        except csv.Error as error:
            return rows, f"{LABELS_FILE} cannot be read from line {line} on ({error}): see whether a quote is left open"
    return rows, ""


class ReplayedUser:
    """A user's samples in a random order, one every so often on a clock that jumps from one to the next.

    Args:
        samples: the user's.
        labelled: fraction of the samples whose label the device is told, in [0, 1].
        clock: is set to each sample's time.
        every_s: simulated seconds from one sample to the next, > 0; the whole life may take 1,000 years.
        speed: simulated over real time, >= 0; 0 does not wait at all.
        is_known: whether a frame of this name was answered before.
        seed: of the order and of who is labelled.
        wait: sleeps for some seconds.

    Raises:
        ClientSettingsError: every_s or speed is out of its range.
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
        # a clock beyond the year 9999 has no date, and NaN is in no range
        if not (every_s > 0 and every_s * len(samples) <= _LONGEST_LIFE_S):
            raise ClientSettingsError(
                f"a sample every {every_s / 60:g} minutes does not do: give more than 0, and so few that the "
                f"{len(samples)} samples take less than 1,000 years."
            )
        if not (0 <= speed < math.inf) or (speed and every_s / speed > _LONGEST_PAUSE_S):
            raise ClientSettingsError(
                f"speed={speed:g} is out of range: expected 0, or a finite number so large that a sample comes every "
                "year at least."
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
        return uniform_draw(self._seed, self._samples.client_id, index, purpose)
