import errno
import json
import os
from pathlib import Path

import pytest

from persephonee.multi_exit.atomic_files import write_bytes_atomically, write_json_atomically, write_text_atomically


def test_writing_reattach_points_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_bytes_atomically(path, b"one")
    write_bytes_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_the_old_file_stays_when_the_disk_is_full(tmp_path, monkeypatch, broken):
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old")

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="No space"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_json_without_a_meaning_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "file.json"
    write_json_atomically(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomically(path, {"accuracy": float("nan")})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}


def test_files_are_as_readable_as_the_users_other_files(tmp_path):
    umask = os.umask(0o027)
    try:
        write_text_atomically(tmp_path / "file", "x")
    finally:
        os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
