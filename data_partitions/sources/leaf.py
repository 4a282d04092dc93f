"""LEAF's JSON folders (`--dataset leaf`): train/*.json and test/*.json, or one folder or file without that split.

Schema of a file: `users` [U], `num_samples` [U], `user_data[user] = {"x": [n][H*W floats], "y": [n ints]}`, square grey
images with white paper = 1.0. Files of FEMNIST have some 100 MB: opening reads them one at a time and keeps where
each user's record lies, and its labels; loading a user parses that record alone.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError, MissingDataError
from persephonee.data_partitions.samples import UserSamples, check_index
from persephonee.data_partitions.sources.image_cells import Pixels, to_bytes
from persephonee.data_partitions.sources.json_walk import JsonWalk


@dataclass(frozen=True, eq=False)
class Record:
    """Where one user's samples lie within a file."""

    path: Path
    start: int
    stop: int
    labels: NDArray[np.int64]
    is_test: bool


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
        self._split_is_fixed = (data_path / "train").is_dir()
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
        self._records = [kept[user] for user in self.client_ids]
        self.num_partitions = len(self.client_ids)
        self.counts = tuple(sum(len(part.labels) for part in parts) for parts in self._records)
        largest = max(int(part.labels.max(initial=0)) for parts in self._records for part in parts)
        self.num_classes = num_classes or largest + 1
        for user, parts in kept.items():
            for part in parts:
                _check_labels(user, part, self.num_classes)
        first = next(part for part in self._records[0] if len(part.labels))
        side = math.isqrt(_read_pixels(self.client_ids[0], first).shape[1])
        self.image_shape = (1, side, side)

    def load_partition(self, index: int) -> UserSamples:
        """Return the samples of user `client_ids[index]`: first the train file's, then the test file's."""
        check_index(index, self.num_partitions)
        client_id, parts = self.client_ids[index], self._records[index]
        pixels = [_read_pixels(client_id, part) for part in parts if len(part.labels)]
        size = self.image_shape[1] * self.image_shape[2]
        for array in pixels:
            if array.shape[1] != size:
                raise BrokenDataError(f"User {client_id}: an image has {array.shape[1]} numbers, the first one {size}.")
        labels = np.concatenate([part.labels for part in parts])
        is_test = np.concatenate([np.full(len(part.labels), part.is_test) for part in parts])
        return UserSamples(
            client_id=client_id,
            images=torch.from_numpy(np.concatenate(pixels).reshape(-1, *self.image_shape)),
            labels=torch.from_numpy(labels),
            fixed_test=torch.from_numpy(is_test) if self._split_is_fixed else None,
        )


def _find_files(data_path: Path) -> list[tuple[Path, bool]]:
    """Return the files, train before test, and whether each belongs to the test part."""
    if data_path.is_file():
        return [(data_path, False)]
    if not data_path.exists():
        raise MissingDataError(f"--data-path {data_path} does not exist; name LEAF's folder with train/ and test/.")
    folders = [(data_path, False)]
    if (data_path / "train").is_dir():
        folders = [(data_path / "train", False), (data_path / "test", True)]
    found = [(path, is_test) for folder, is_test in folders for path in sorted(folder.glob("*.json"))]
    if not found:
        raise MissingDataError(
            f"--data-path {data_path} holds no .json file; name LEAF's folder with train/ and test/."
        )
    return found


def _index_file(path: Path, is_test: bool) -> list[tuple[str, Record]]:
    """Read one file and return every user's record, having checked that the file is whole and agrees with itself."""
    walk = JsonWalk(path.read_bytes())
    found: dict[str, Any] = {}
    records: dict[str, Record] = {}
    try:
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
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise BrokenDataError(f"{path}: the labels y of user {user} are not a list of integers.")
    # one bracket opens x itself, one more opens each image
    num_images = walk.data.count(b"[", *span) - 1
    if num_images != len(labels):
        raise BrokenDataError(f"{path}: user {user} has {num_images} images in x and {len(labels)} labels in y.")
    return Record(path, *span, labels.astype(np.int64), is_test)


def _check_labels(user: str, part: Record, num_classes: int) -> None:
    wrong = part.labels[(part.labels < 0) | (part.labels >= num_classes)]
    if len(wrong):
        raise LabelRangeError(f"{part.path}: user {user} has the label {wrong[0]}; expected [0, {num_classes}).")


def _read_pixels(user: str, record: Record) -> Pixels:
    """Return one record's images as uint8, shape [n, H*W]."""
    with record.path.open("rb") as file:
        file.seek(record.start)
        text = file.read(record.stop - record.start)
    try:
        values = np.asarray(json.loads(text), dtype=np.float32)
        if values.ndim != 2 or math.isqrt(values.shape[1]) ** 2 != values.shape[1]:
            raise ValueError(f"the shape is {list(values.shape)}, not [n, H*W] of squares")
        return to_bytes(values)
    except (ValueError, TypeError) as error:
        raise BrokenDataError(f"{record.path}: the images x of user {user} cannot be used ({error}).") from error
