"""A model's way to a Hugging Face repository and back; a folder, such as a clone, serves as one too.

Exactly the files that `network.json` names travel, as they are. What is pulled is a stranger's until it has been built,
loaded and compared with its fingerprint, and reaches its folder only then.
"""

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from persephonee.multi_exit.atomic_files import LEFTOVER_SUFFIX, names_in, new_folder_atomically, remove_leftovers
from persephonee.multi_exit.checked_json import MAX_JSON_BYTES
from persephonee.multi_exit.errors import MultiExitError
from persephonee.multi_exit.graphs.checking import MAX_GRAPH_BYTES
from persephonee.multi_exit.graphs.description import StageGraph, all_stages
from persephonee.multi_exit.network import NetworkSpec
from persephonee.multi_exit.repository.model_card import CARD_NAME, MAX_CARD_BYTES
from persephonee.multi_exit.storage import GRAPH_NAME, load_network, read_description

HUB = "hf://"
DESCRIPTION = "network.json"
MAX_WEIGHTS_BYTES = 16 * 2**30
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class RepositoryError(MultiExitError):
    """A repository cannot be reached, or holds something else than a model."""


def files_of(folder: Path) -> tuple[str, ...]:
    """Return the files of the model in a folder, the description last.

    Raises:
        ModelFileError: the folder holds no model, or its description is damaged.
    """
    description = read_description(folder)
    return (description["weights"], *(stage.file for stage in _graphs_of(description)), DESCRIPTION)


def _graphs_of(description: Mapping[str, Any]) -> tuple[StageGraph, ...]:
    if "graphs" not in description:
        return ()
    spec = NetworkSpec.from_json(json.dumps(description["spec"]))
    return all_stages(description["graphs"], spec.num_exits)


def push_model(model: Path, target: str, sources: tuple[str, ...]) -> tuple[str, ...]:
    """Copy a model, which is checked first, into a repository, and return the names of the files.

    Args:
        model: its folder.
        target: hf://OWNER/NAME, or a folder.
        sources: from which this machine builds backbones.

    Raises:
        MultiExitError: the model cannot be loaded, or the folder holds something else.
        RepositoryError: the hub refuses.
        OSError: the folder cannot be written.
    """
    load_network(model, sources)
    names = files_of(model)
    card = (CARD_NAME,) if (model / CARD_NAME).is_file() else ()
    if target.startswith(HUB):
        _upload(model, _repository(target), (*names, *card))
    else:
        _push_to_folder(model, Path(target), names, card)
    return (*names, *card)


def pull_model(source: str, out: Path, sources: tuple[str, ...]) -> tuple[str, ...]:
    """Fetch a model from a repository, check it, and put it into `out`; return the names of its files.

    Args:
        source: hf://OWNER/NAME, or a folder.
        out: a folder that is missing or empty.
        sources: from which this machine builds backbones.

    Raises:
        MultiExitError: there is no model, or it is damaged or not allowed here.
        RepositoryError: the hub cannot be reached.
        OSError: `out` cannot be written.
    """
    if names_in(out) or (out.exists() and not out.is_dir()):
        raise RepositoryError(f"{out} is not empty: name another folder for the model.")
    fetch = _from_hub(_repository(source)) if source.startswith(HUB) else _from_folder(Path(source))
    remove_leftovers(out)
    with new_folder_atomically(out) as arrived:
        fetch(DESCRIPTION, arrived, MAX_JSON_BYTES)
        names = files_of(arrived)
        for name in names[:-1]:
            fetch(name, arrived, MAX_GRAPH_BYTES if GRAPH_NAME.fullmatch(name) else MAX_WEIGHTS_BYTES)
        with contextlib.suppress(FileNotFoundError):
            fetch(CARD_NAME, arrived, MAX_CARD_BYTES)
            names = (*names, CARD_NAME)
        _check(arrived, sources)
    return names


def _check(folder: Path, sources: tuple[str, ...]) -> None:
    """Refuse what cannot be loaded: the network is built from a source that is allowed, and nothing is unpickled."""
    load_network(folder, sources)
    for stage in _graphs_of(read_description(folder)):
        stage.read(folder)


def _push_to_folder(model: Path, target: Path, names: tuple[str, ...], card: tuple[str, ...]) -> None:
    if target.exists() and not target.is_dir():
        raise RepositoryError(f"{target} is a file: name a folder, such as the clone of a repository.")
    strangers = [name for name in names_in(target) if not (name.startswith(".git") or name in (CARD_NAME, "LICENSE"))]
    old = files_of(target) if DESCRIPTION in strangers else ()
    strangers = [name for name in strangers if name not in old]
    if strangers:
        raise RepositoryError(f"{target} holds {strangers[0]}, which is of no model: name another folder.")
    if target.resolve() == model.resolve():
        raise RepositoryError(f"{target} is the model itself: name another folder.")
    target.mkdir(parents=True, exist_ok=True)
    # the description last: until then a reader finds the old model
    for name in (*card, *names):
        _copy(model / name, target / name)
    for name in set(old) - set(names):
        (target / name).unlink(missing_ok=True)


def _from_folder(source: Path) -> Callable[[str, Path, int], None]:
    def fetch(name: str, folder: Path, most_bytes: int) -> None:
        _copy(source / name, folder / name, most_bytes)

    if not source.is_dir():
        raise RepositoryError(f"{source} is no folder: name one, or a repository as hf://OWNER/NAME.")
    if not (source / DESCRIPTION).is_file():
        raise RepositoryError(f"{source} has no {DESCRIPTION}, so there is no model in it.")
    return fetch


def _copy(source: Path, target: Path, most_bytes: int = MAX_WEIGHTS_BYTES) -> None:
    """Copy a regular file atomically; a pipe would block, and a link could lead anywhere."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    if source.is_symlink():
        raise RepositoryError(f"{source} is a link: put the file itself there.")
    with os.fdopen(os.open(source, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise RepositoryError(f"{source} is no regular file.")
        if found.st_size > most_bytes:
            raise RepositoryError(f"{source} has {found.st_size} bytes, expected at most {most_bytes}.")
        partial = target.with_name(f".{target.name}{LEFTOVER_SUFFIX}")
        with partial.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        partial.replace(target)


def _repository(address: str) -> str:
    name = address.removeprefix(HUB)
    if not _REPOSITORY.fullmatch(name):
        raise RepositoryError(f"{address} is no repository: expected hf://OWNER/NAME.")
    return name


def _upload(model: Path, repository: str, names: tuple[str, ...]) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=model, allow_patterns=list(names))
    # httpx's errors, the hub's and OSError have no other base
    except Exception as error:
        raise _unreachable(repository, error) from error


def _from_hub(repository: str) -> Callable[[str, Path, int], None]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(name: str, folder: Path, most_bytes: int) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _copy(Path(hf_hub_download(repository, name, local_dir=scratch)), folder / name, most_bytes)
        except RepositoryError:
            raise
        except LocalEntryNotFoundError as error:
            # no copy is kept here, and nobody answered: the repository may well have the file
            raise _unreachable(repository, error) from error
        except EntryNotFoundError as error:
            if name == CARD_NAME:
                raise FileNotFoundError(name) from error
            raise RepositoryError(f"{repository} has no {name}, so there is no model in it.") from error
        except Exception as error:
            raise _unreachable(repository, error) from error

    return fetch


def _unreachable(repository: str, error: Exception) -> RepositoryError:
    reason = " ".join(str(error).split()).rstrip(".")[:200]
    return RepositoryError(
        f"{HUB}{repository} cannot be used ({type(error).__name__}: {reason}): check its name, the network, and that "
        "you are logged in with `hf auth login`."
    )
