"""Files as their publishers offer them: taken from a folder or fetched, and checked against published checksums."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from persephonee.data_partitions.errors import BrokenDataError, MissingDataError

Files = Annotated[Path, typer.Option(help="Folder of the publisher's files; what is fetched goes there.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch what the folder lacks; without it nothing is.")]
AnyFiles = Annotated[bool, typer.Option("--any-files", help="Take files whose checksum is not the published one.")]


@dataclass(frozen=True, kw_only=True)
class PublisherFile:
    """A file that somebody publishes.

    Attributes:
        name: of the file.
        url: where it is published.
        checksum: `md5:` or `sha256:` and the digest, or how it begins; empty where nobody states one.
        stated_by: who states the checksum.
    """

    name: str
    url: str
    checksum: str = ""
    stated_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Fetching:
    """How publishers' files are come by.

    Attributes:
        folder: where they are, or are put.
        downloads: whether missing ones are fetched.
        takes_any: whether a wrong checksum is no error.
    """

    folder: Path
    downloads: bool = False
    takes_any: bool = False

    def obtain(self, file: PublisherFile) -> Path:
        """Return the path of a publisher's file, and print its size, its SHA-256 and how that compares.

        Raises:
            MissingDataError: it is not there, or cannot be fetched.
            BrokenDataError: it has another checksum than the published one.
        """
        path = self.folder / file.name
        if not path.is_file():
            self._fetch(file, path)
        algorithm, _, expected = file.checksum.partition(":")
        verdict = "no published checksum is known"
        if expected:
            found = _digest(path, algorithm)
            agrees = found.startswith(expected)
            if not agrees and not self.takes_any:
                raise BrokenDataError(
                    f"{path} has the {algorithm} {found}, and {file.stated_by} states {expected}: fetch it again, or "
                    "give --any-files where the file is meant to be another."
                )
            verdict = f"the {algorithm} {'is' if agrees else 'is not'} the one that {file.stated_by} states"
        typer.echo(f"{path}: {path.stat().st_size:,} bytes, sha256 {_digest(path, 'sha256')}; {verdict}.")
        return path

    def _fetch(self, file: PublisherFile, path: Path) -> None:
        if not self.downloads:
            raise MissingDataError(f"{path} is missing: fetch it from {file.url}, or give --download.")
        from torch.hub import download_url_to_file

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(file.url, str(path), progress=sys.stderr.isatty())
        except OSError as error:
            raise MissingDataError(
                f"{file.url} cannot be fetched ({error}): connect to the network, or put the file into {path.parent}."
            ) from error


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
