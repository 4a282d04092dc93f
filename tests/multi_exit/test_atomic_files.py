import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from persephonee.multi_exit.atomic_files import (
    LEFTOVER_SUFFIX,
    check_writable,
    make_private_folder,
    names_in,
    new_folder_atomically,
    remove_leftovers,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)


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


def test_a_place_that_cannot_be_written_is_named_before_and_nothing_of_the_trial_stays(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(NotADirectoryError) as refused:
            check_writable(place)
        assert str(refused.value.filename).startswith(str(tmp_path / "file"))

    def read_only(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/somewhere/.hidden.tmp")

    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    for write in (check_writable, lambda place: write_text_atomically(place, "x")):
        with pytest.raises(OSError, match="Read-only") as refused:
            write(tmp_path / "new")
        assert refused.value.filename == str(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_room_is_asked_for_in_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=3_000_000))
    check_writable(tmp_path, 3_000_000)
    with pytest.raises(OSError, match=r"4\.0 MB are needed, and 3\.0 MB are free"):
        check_writable(tmp_path / "new", 4_000_000)
    assert not list(tmp_path.iterdir())


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


def test_a_private_file_and_folder_are_only_this_users(tmp_path):
    make_private_folder(tmp_path / "store")
    write_json_atomically(tmp_path / "store" / "state.json", {}, private=True)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "store" / "state.json").stat().st_mode & 0o777 == 0o600


def test_what_a_kill_left_is_removed_and_what_others_wrote_is_not(tmp_path):
    program = f"""
import os, pathlib
from persephonee.multi_exit import atomic_files
atomic_files.os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
atomic_files.write_bytes_atomically(pathlib.Path({str(tmp_path / "file.bin")!r}), b"half")
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert [path.suffixes[-2:] for path in tmp_path.iterdir()] == [[".persephonee", ".tmp"]]
    assert names_in(tmp_path) == []
    theirs = {".file.bin.tmp", "notes.persephonee.tmp", ".hidden"}
    for name in theirs:
        (tmp_path / name).write_text("precious")
    (tmp_path / f".folder{LEFTOVER_SUFFIX}").mkdir()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, f".folder{LEFTOVER_SUFFIX}"}


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "app"
    with pytest.raises(RuntimeError), new_folder_atomically(folder) as made:
        (made / "half").touch()
        raise RuntimeError
    assert list(folder.parent.iterdir()) == []
    with new_folder_atomically(folder) as made:
        (made / "one").touch()
        assert not folder.exists()
    assert names_in(folder) == ["one"]
    # somebody else filled it in the meantime
    with pytest.raises(OSError, match="not empty"), new_folder_atomically(folder) as made:
        (made / "two").touch()
    assert names_in(folder.parent) == ["app"]


@pytest.mark.parametrize(("private", "mode"), [(True, 0o700), (False, 0o750)])
def test_a_new_folder_may_replace_an_empty_one_and_is_as_open_as_it_was_asked_to_be(tmp_path, private, mode):
    umask = os.umask(0o027)
    try:
        (tmp_path / "folder").mkdir()
        with new_folder_atomically(tmp_path / "folder", private=private) as made:
            assert made.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(umask)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == mode
