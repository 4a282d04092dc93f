"""LEAF's JSON folders (`--dataset leaf`): train/*.json and test/*.json, or one folder or file without that split.

Schema of a file: `users` [U], `num_samples` [U], `user_data[user] = {"x": [n][H*W numbers], "y": [n ints]}`, square
grey images, or rows of rows [n][H][W]. White paper is 1.0, or 255 where all numbers of the data are whole. Files of
FEMNIST have some 100 MB: opening reads them one at a time and keeps where each user's record lies, and its labels;
loading a user parses that record alone.

The folders train/ and test/ hold parts of the same users (LEAF's `-t sample`), or different users (`-t user`), whose
samples are then divided as those of any other data.
"""

import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError, MissingDataError
from persephonee.data_partitions.image_decoder import Pixels, to_bytes
from persephonee.data_partitions.limits import MAX_JSON_BYTES
from persephonee.data_partitions.safe_files import read_file, refuse_odd_file, visible_files
from persephonee.data_partitions.samples import UserSamples, check_index
from persephonee.data_partitions.sources.image_cells import refuse_too_many
from persephonee.data_partitions.sources.json_walk import JsonWalk, closings, depth_of_lists
from persephonee.data_partitions.sources.published_sets import FEMNIST_OF_LEAF, is_femnist
from persephonee.data_partitions.user_ids import check_ids

logger = logging.getLogger(__name__)

_FRACTION = re.compile(rb"[.eE]")
_ABOVE_ONE = re.compile(rb"[2-9]|\d\d")


@dataclass(frozen=True, eq=False)
class Record:
    """Where one user's samples lie within a file."""

    path: Path
    start: int
    stop: int
    labels: NDArray[np.int64]
    is_test: bool
    scale: int
    """What stands for white: 1 where there are fractions, 255 with whole numbers above 1, 0 where it is not known."""


class LeafUsers:
    """Partitions by user of LEAF's JSON files.

    Args:
        data_path: a folder with train/ and test/, a folder of .json files, or one file.
        num_classes: K; None takes the largest label + 1.

    Raises:
        MissingDataError: no such path, or no .json files there.
        BrokenDataError: a file that is cut off, or whose users, num_samples and user_data disagree.
        LabelRangeError: a label outside [0, K).
    """

    name = "leaf"
    class_names: tuple[str, ...] | None = None

    def __init__(self, data_path: Path, *, num_classes: int | None = None) -> None:
        records: dict[str, list[Record]] = {}
        for path, is_test in _find_files(data_path):
            for user, record in _index_file(path, is_test):
                known = records.setdefault(user, [])
                if any(other.is_test == is_test for other in known):
                    raise BrokenDataError(f"User {user} is in {known[0].path} and again in {path}; remove one.")
                known.append(record)
        kept = {user: parts for user, parts in records.items() if sum(len(part.labels) for part in parts)}
        if not kept:
            raise BrokenDataError(f"{data_path} holds no samples.")
        self.client_ids = tuple(sorted(kept))
        check_ids(self.client_ids, str(data_path))
        self._scale = _scale_of(kept)
        parts_of = [{part.is_test for part in parts if len(part.labels)} for parts in kept.values()]
        self._split_is_fixed = any(len(parts) == 2 for parts in parts_of)
        if not self._split_is_fixed and {True} in parts_of:
            logger.warning("%s is split by user (-t user); every user's samples are divided anew", data_path)
        self._records = [kept[user] for user in self.client_ids]
        self.num_partitions = len(self.client_ids)
        self.counts = tuple(sum(len(part.labels) for part in parts) for parts in self._records)
        largest = max(int(part.labels.max(initial=0)) for parts in self._records for part in parts)
        self.num_classes = num_classes or largest + 1
        for user, parts in kept.items():
            for part in parts:
                _check_labels(user, part, self.num_classes)
        if is_femnist(self.client_ids, self.num_classes):
            FEMNIST_OF_LEAF.compare(self.counts, is_whole=False)
        first = next(part for part in self._records[0] if len(part.labels))
        side = math.isqrt(_read_pixels(self.client_ids[0], first, self._scale).shape[1])
        self.image_shape = (1, side, side)

    def load_partition(self, index: int) -> UserSamples:
        """Return the samples of user `client_ids[index]`: first the train file's, then the test file's."""
        check_index(index, self.num_partitions)
        client_id, parts = self.client_ids[index], self._records[index]
        refuse_too_many(self.counts[index], self.image_shape, client_id)
        pixels = [_read_pixels(client_id, part, self._scale) for part in parts if len(part.labels)]
        size = self.image_shape[1] * self.image_shape[2]
        for array in pixels:
            if array.shape[1] != size:
                raise BrokenDataError(f"User {client_id}: an image has {array.shape[1]} numbers, the first one {size}.")
        labels = np.concatenate([part.labels for part in parts])
        is_test = np.concatenate([np.full(len(part.labels), part.is_test) for part in parts])
        return UserSamples(
            client_id=client_id,
            images=np.concatenate(pixels).reshape(-1, *self.image_shape),
            labels=labels,
            fixed_test=is_test if self._split_is_fixed else None,
        )


def _find_files(data_path: Path) -> list[tuple[Path, bool]]:
    """Return the files, train before test, and whether each belongs to the test part."""
    refuse_odd_file(data_path)
    if data_path.is_file():
        return [(data_path, False)]
    if not data_path.exists():
        raise MissingDataError(f"--data-path {data_path} does not exist; name LEAF's folder with train/ and test/.")
    folders = [(data_path, False)]
    if (data_path / "train").is_dir():
        folders = [(data_path / "train", False), (data_path / "test", True)]
    found = [
        (path, is_test)
        for folder, is_test in folders
        for path in visible_files(folder, folder.glob("*.json"), lambda path: True)
    ]
    if not found:
        raise MissingDataError(
            f"--data-path {data_path} holds no .json file; name LEAF's folder with train/ and test/."
        )
    return found


def _index_file(path: Path, is_test: bool) -> list[tuple[str, Record]]:
    """Read one file and return every user's record, having checked that the file is whole and agrees with itself."""
    found: dict[str, Any] = {}
    records: dict[str, Record] = {}
    try:
        walk = JsonWalk(read_file(path, MAX_JSON_BYTES))
        for key in walk.members():
            if key == "user_data":
                for user in walk.members():
                    records[user] = _index_record(walk, path, user, is_test)
                found[key] = records
            elif key in ("users", "num_samples"):
                found[key] = walk.parse()
            else:
                walk.skip()
    except BrokenDataError:
        raise
    except OSError as error:
        raise BrokenDataError(f"{path} cannot be read ({error.strerror}); give a file that you may read.") from error
    except ValueError as error:
        raise BrokenDataError(f"{path} is no complete JSON ({error}); fetch or write it again.") from error
    for key in ("users", "num_samples", "user_data"):
        if not isinstance(found.get(key), list | dict):
            raise BrokenDataError(f"{path} has no {key}; LEAF's files hold users, num_samples and user_data.")
    _check_agreement(path, found["users"], found["num_samples"], records)
    return [(user, records[user]) for user in found["users"]]


def _check_agreement(path: Path, users: list[str], num_samples: list[int], records: dict[str, Record]) -> None:
    if not all(isinstance(user, str) for user in users):
        raise BrokenDataError(f"{path}: users must be a list of strings.")
    if len(users) != len(num_samples):
        raise BrokenDataError(f"{path} has {len(users)} users and {len(num_samples)} num_samples; they must agree.")
    if len(set(users)) != len(users):
        raise BrokenDataError(f"{path} names a user twice in users.")
    for missing, where, other in (
        (set(users) - set(records), "users", "user_data"),
        (set(records) - set(users), "user_data", "users"),
    ):
        if missing:
            raise BrokenDataError(f"{path}: user {min(missing)} is in {where} and not in {other}; they must agree.")
    for user, count in zip(users, num_samples, strict=True):
        if len(records[user].labels) != count:
            held = len(records[user].labels)
            raise BrokenDataError(f"{path}: num_samples says {count} for user {user} and the data holds {held}.")


def _index_record(walk: JsonWalk, path: Path, user: str, is_test: bool) -> Record:
    span, labels = None, None
    for key in walk.members():
        if key == "x":
            try:
                span = walk.skip_rows_of_numbers()
            except ValueError as error:
                raise BrokenDataError(f"{path}: the images x of user {user} cannot be used ({error}).") from error
        elif key == "y":
            labels = np.asarray(walk.parse())
        else:
            walk.skip()
    if span is None or labels is None:
        raise BrokenDataError(f"{path}: user {user} has no {'x' if span is None else 'y'}.")
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        # whole numbers, as pandas writes a column that once lacked one
        labels = labels.astype(np.int64)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise BrokenDataError(f"{path}: the labels y of user {user} are not a list of integers.")
    num_images = _count_images(walk.data[slice(*span)])
    if num_images != len(labels):
        raise BrokenDataError(f"{path}: user {user} has {num_images} images in x and {len(labels)} labels in y.")
    return Record(path, *span, labels.astype(np.int64), is_test, _scale_of_text(walk.data[slice(*span)]))


def _count_images(text: bytes) -> int:
    depth = depth_of_lists(text)
    if depth > 2:
        return len(closings(depth - 1).findall(text))
    # one bracket opens x itself, one more opens each image
    return text.count(b"[") - 1


def _scale_of_text(text: bytes) -> int:
    if _FRACTION.search(text):
        return 1
    return 255 if _ABOVE_ONE.search(text) else 0


def _scale_of(users: dict[str, list[Record]]) -> int:
    """Return what stands for white in all of the data, 1 or 255: a user with blank images alone does not say."""
    scale_of_user = {part.scale: user for user, parts in users.items() for part in parts if part.scale}
    if len(scale_of_user) > 1:
        raise BrokenDataError(
            f"User {scale_of_user[255]} has images of whole numbers, 0 to 255, and user {scale_of_user[1]} of "
            "fractions, 0 to 1; divide the former by 255."
        )
    return next(iter(scale_of_user), 1)


def _check_labels(user: str, part: Record, num_classes: int) -> None:
    wrong = part.labels[(part.labels < 0) | (part.labels >= num_classes)]
    if len(wrong):
        raise LabelRangeError(f"{part.path}: user {user} has the label {wrong[0]}; expected [0, {num_classes}).")


def _read_pixels(user: str, record: Record, scale: int) -> Pixels:
    """Return one record's images as uint8, shape [n, H*W]; `scale` stands for white."""
    with record.path.open("rb") as file:
        file.seek(record.start)
        text = file.read(record.stop - record.start)
    try:
        values = np.asarray(json.loads(text), dtype=np.int64 if scale == 255 else np.float32)
        if values.ndim == 4 and 1 in (values.shape[1], values.shape[3]):
            values = values.squeeze(1 if values.shape[1] == 1 else 3)
        if values.ndim == 3 and values.shape[1] == values.shape[2]:
            values = values.reshape(len(values), -1)
        if values.ndim != 2 or math.isqrt(values.shape[1]) ** 2 != values.shape[1]:
            raise ValueError(
                f"the shape is {list(values.shape)}, not [n, H*W] or [n, H, W] of grey squares; use parquet for others"
            )
        return to_bytes(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise BrokenDataError(f"{record.path}: the images x of user {user} cannot be used ({error}).") from error
