"""Where a device's frames come from: a folder that somebody fills, or a user's stream that is played again.

A source yields frames to answer, frames that are none, labels that arrive later, and None where there is nothing to do
just now.
"""

import math
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from persephonee.clients.errors import ClientSettingsError, ImageError
from persephonee.clients.runtime.device_settings import Frame
from persephonee.clients.runtime.device_state import ScriptedClock
from persephonee.clients.runtime.image_file import read_image
from persephonee.clients.runtime.labels_file import (
    LABELS_FILE,
    LabelRow,
    aliases,
    by_folded_name,
    class_of,
    folded,
    frame_of,
    key_of,
    label_for,
    read_rows,
)
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.seeds import uniform_draw

SETTLE_S = 1.0
"""A younger file that does not decode may be half written, so it is read again later."""

_YEAR_S = 365 * 86_400.0
_LONGEST_LIFE_S = 1000 * _YEAR_S
_LONGEST_PAUSE_S = _YEAR_S

MOST_TOLD = 100
"""How many lines of a labels file an event names one by one; further ones are only counted."""


@dataclass(frozen=True, kw_only=True)
class NoFrame:
    """A file or row that should hold a frame and does not.

    Attributes:
        key: the name of the file or row.
        reason: one sentence that says what is wrong with it.
        seen_as: what is remembered of it, where another content under this key is to be looked at again.
    """

    key: str
    reason: str
    seen_as: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class LateLabel:
    """A label for a frame that was answered earlier.

    Attributes:
        key: the name of the frame.
        label: class index.
    """

    key: str
    label: int


Item = Frame | NoFrame | LateLabel | None


class WatchedFolder:
    """The images in a folder, the oldest first, and then those that arrive; `labels.csv` there holds `name,label` rows.

    Args:
        folder: an existing folder; hidden files in it are ignored, because half-written files are often hidden.
        shape: (C, H, W) of an image.
        class_names: K names, or numbers as text.
        is_known: says whether a frame of this name was answered before.
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
        self._present: set[str] = set()
        self._rows: dict[str, LabelRow] = {}
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
        now = time.time()
        found = [path for path in self._folder.iterdir() if not path.name.startswith(".") and path.name != LABELS_FILE]
        ages = {path: written for path in found if (written := _written_at(path)) is not None}
        self._present = {path.name for path in ages}
        for path in sorted(ages, key=lambda path: (ages[path], path.name)):
            key = key_of(path.name)
            if self._is_known(key):
                continue
            # what was incomplete is looked at again when it has been written again, and only then
            seen_as = f"{key}/{ages[path]!r}"
            if self._is_known(seen_as):
                continue
            try:
                yield Frame(key=key, image=read_image(path, self._shape), label=self._label_of(path.name))
            except ImageError as error:
                if abs(now - ages[path]) > SETTLE_S:
                    yield NoFrame(key=key, reason=str(error), seen_as=seen_as)

    def _label_of(self, name: str) -> int | None:
        label = label_for(name, self._labels)
        return None if label is None else class_of(label, self._classes)

    def _new_labels(self) -> Iterator[Item]:
        path = self._folder / LABELS_FILE
        try:
            written_at = path.stat().st_mtime_ns
            if written_at == self._labels_read_at:
                return
            rows, faults = read_rows(path)
        except FileNotFoundError:
            return
        except OSError as error:
            reason = f"{LABELS_FILE} cannot be read ({error.strerror}): give a file that this program may read"
            yield NoFrame(key=f"{LABELS_FILE}:{error.strerror}", reason=reason)
            return
        self._labels_read_at = written_at
        new = [row for row in rows if self._rows.get(row.name, row).label != row.label or row.name not in self._rows]
        lost: list[str] = []
        present = by_folded_name(self._present)
        for row in new:
            yield from self._take_row(row, present, lost)
        told = [*lost, *faults]
        for reason in told[:MOST_TOLD]:
            yield NoFrame(key=f"{LABELS_FILE}:{reason}", reason=reason)
        if len(told) > MOST_TOLD:
            reason = f"{len(told) - MOST_TOLD} more lines of {LABELS_FILE} give no label to a frame that is there"
            yield NoFrame(key=f"{LABELS_FILE}:{reason}", reason=reason)

    def _take_row(self, row: LabelRow, present: Mapping[str, list[str]], lost: list[str]) -> Iterator[Item]:
        """Yield a row's label, or that it is none; add to `lost` what is to be said if it names no frame."""
        self._rows[row.name] = row
        for name in aliases(row.name):
            self._labels[folded(name)] = row.label
        number = class_of(row.label, self._classes)
        if number is None:
            known = ", ".join(list(self._classes)[:5])
            reason = f"the label {row.label!r} is no class: give {known}, ..."
            yield NoFrame(key=f"{LABELS_FILE}:{key_of(row.name)},{row.label}", reason=reason)
            return
        key, fault = frame_of(row, present, self._is_known)
        if key is None:
            lost.append(f"line {row.line} of {LABELS_FILE}: {key_of(row.name)!r} {fault}")
        else:
            yield LateLabel(key=key, label=number)


def _written_at(path: Path) -> float | None:
    """Return when a file was last written, in seconds since 1970; None where it is no regular file or is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime if stat.S_ISREG(found.st_mode) else None


class ReplayedUser:
    """A user's samples in a random order, at equal intervals of a clock that jumps from one to the next.

    Args:
        samples: the samples of one user.
        labelled: fraction of the samples whose label the device is told, in [0, 1].
        clock: a clock that is set to each sample's time.
        every_s: simulated seconds from one sample to the next, > 0; the whole life may take 1,000 years.
        speed: simulated time over real time, >= 0; 0 does not wait at all.
        is_known: says whether a frame of this name was answered before.
        seed: determines the order, and which samples are labelled.
        wait: sleeps for the given number of seconds.

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
