"""A folder of keys and settings that appears whole or not at all, and that only its owner reads."""

import os
from collections.abc import Mapping
from pathlib import Path

from persephonee.fl_app.errors import AppError
from persephonee.multi_exit.atomic_files import new_folder_atomically

FOLDER_MODE = 0o700
KEY_MODE = 0o600
OPEN_MODE = 0o644


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        AppError: it does, or it is a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise AppError(f"{folder} is not empty, and keys are not replaced: name a new folder, or move this one away.")


def write_private_folder(folder: Path, files: Mapping[str, tuple[bytes, int]], folders: tuple[str, ...] = ()) -> None:
    """Make `folder` with all its files.

    Args:
        folder: must not exist, or be empty.
        files: content and mode of each file, by its path below the folder.
        folders: empty folders below it.

    Raises:
        AppError: the folder holds something.
        OSError: it cannot be written; nothing is left behind.
    """
    check_free(folder)
    with new_folder_atomically(folder, private=True) as made:
        for name in folders:
            (made / name).mkdir(mode=FOLDER_MODE, parents=True)
        for name, (content, mode) in files.items():
            (made / name).parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            # the file is born with its mode: a key is at no moment readable to others
            descriptor = os.open(made / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
