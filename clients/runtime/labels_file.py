"""The labels file beside watched frames: rows of a frame's name and its class, written by people and their programs.

Commas, semicolons or tabs divide the fields; the text is UTF-8, with or without a mark, or UTF-16 with one. A name may
have folders before it, or lack its ending.
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from persephonee.data_partitions.image_decoder import IMAGE_SUFFIXES
from persephonee.data_partitions.limits import MAX_LABELS_BYTES
from persephonee.data_partitions.safe_files import read_file

LABELS_FILE = "labels.csv"
DELIMITERS = ",;\t"

_LONGEST_NAME = 255
"""Of a file. A field that is longer is what an open quote has swallowed: no event repeats all of it."""

_HEADERS = frozenset({"name", "file", "filename", "file_name", "image", "path", "key", "frame"})
_LABEL_HEADERS = frozenset({"label", "labels", "class", "category", "target"})


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One row of the file.

    Attributes:
        line: its number, from 1.
        name: as it stands there.
        label: likewise.
    """

    line: int
    name: str
    label: str


def key_of(name: str) -> str:
    """Return a file's name as text that can be stored and printed; two names never have the same key.

    A name need not be UTF-8, and Python keeps the bytes that are not as lone surrogates. They become /x and two digits:
    no name has a slash.
    """
    return re.sub("[\udc80-\udcff]", lambda odd: f"/x{ord(odd[0]) - 0xDC00:02x}", name)


def read_rows(path: Path) -> tuple[list[LabelRow], list[str]]:
    """Return the rows of a labels file up to the first that cannot be read, and what is wrong with it, in sentences.

    Raises:
        OSError: it cannot be opened or read.
    """
    rows: list[LabelRow] = []
    faults: list[str] = []
    try:
        text = _decode(read_file(path, MAX_LABELS_BYTES))
    except ValueError as error:
        return rows, [f"{LABELS_FILE} cannot be read ({error}): write it again"]
    reader, line = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text)), 1
    try:
        for fields in reader:
            if line == 1 and fields and fields[0].startswith("sep="):
                # what Excel writes before the rows to name the delimiter
                pass
            elif len(fields) >= 2:
                name, label = (field.strip()[:_LONGEST_NAME] for field in fields[:2])
                if rows or name.casefold() not in _HEADERS or label.casefold() not in _LABEL_HEADERS:
                    rows.append(LabelRow(line=line, name=name, label=key_of(label)))
            elif fields:
                shown = key_of(fields[0].strip()[:_LONGEST_NAME])
                faults.append(f"line {line} of {LABELS_FILE} holds {shown!r} alone: give a name and a label")
            line = reader.line_num + 1
    except csv.Error as error:
        faults.append(f"{LABELS_FILE} cannot be read from line {line} on ({error}): see whether a quote is left open")
    return rows, faults


def aliases(name: str) -> Iterator[str]:
    """Yield the names of files that a row may mean, the likeliest first: as written, and without its folders."""
    yield name
    for base in (name.rpartition("/")[2], re.split(r"[/\\]", name)[-1]):
        if base and base != name:
            yield base


def frame_of(row: LabelRow, present: Set[str], is_known: Callable[[str], bool]) -> tuple[str | None, str]:
    """Find the frame that a row names.

    Args:
        row: of the labels file.
        present: names of the files that are there.
        is_known: whether a frame of this key was answered before; its file may be gone.

    Returns:
        The frame's key, or None and the reason, as half a sentence.
    """
    for name in aliases(row.name):
        if name in present or is_known(key_of(name)):
            return key_of(name), ""
    has_ending = PurePosixPath(row.name).suffix.lower() in IMAGE_SUFFIXES
    for stem in () if has_ending else aliases(row.name):
        ended = {stem + ending for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())}
        found = sorted(name for name in ended if name in present or is_known(key_of(name)))
        if len(found) > 1:
            return None, f"may mean {found[0]} or {found[1]}: write the name with its ending"
        if found:
            return key_of(found[0]), ""
    return None, "names no frame that is there: write the name of its file"


def label_for(name: str, labels: dict[str, str]) -> str | None:
    """Return the label that earlier rows, by their aliases, gave a file that has come only now."""
    return labels.get(name, labels.get(PurePosixPath(name).stem))


def _decode(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    # surrogates, so that a name in another encoding is the name of its file
    return content.decode("utf-8-sig", errors="surrogateescape")


def _delimiter(text: str) -> str:
    if text.startswith("sep=") and text[4:5] in DELIMITERS:
        return text[4]
    # the last line of a sample may be cut off
    sample = text[:8192].rpartition("\n")[0] or text[:8192]
    try:
        return csv.Sniffer().sniff(sample, DELIMITERS).delimiter
    except csv.Error:
        return max(DELIMITERS, key=sample.count)
