"""The labels file beside watched frames: rows of a frame's name and its class, written by people and their programs.

Commas, semicolons, tabs or bars divide the fields; the text is UTF-8, with or without a mark, UTF-16 with one, or what
Windows writes in the West. The first row may name the columns, in any order. A name may have folders before it, lack
its ending, or differ from its file's in case or Unicode form.
"""

import codecs
import contextlib
import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from persephonee.data_partitions.image_decoder import IMAGE_SUFFIXES
from persephonee.data_partitions.limits import MAX_LABELS_BYTES
from persephonee.data_partitions.safe_files import read_file

LABELS_FILE = "labels.csv"
DELIMITERS = ",;\t|"

_LONGEST_NAME = 255
"""Of a file. A field that is longer is what an open quote has swallowed: no event repeats all of it."""

_NAME_HEADERS = frozenset(
    {"name", "file", "filename", "filepath", "image", "imagename", "imagepath", "img", "path", "key", "frame", "datei"}
)
_LABEL_HEADERS = frozenset(
    {"label", "labels", "labelid", "labelname", "class", "classid", "classname", "category", "target", "y", "klasse"}
)


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
    columns: tuple[int, int] | None = None
    try:
        for fields in reader:
            is_note = line == 1 and bool(fields) and fields[0].startswith("sep=")  # what Excel writes before the rows
            if len(fields) > 1 and not is_note and columns is None:
                columns = _columns(fields)
                is_note = columns is not None
                columns = columns or (0, 1)
            if fields and not is_note:
                if columns is not None and len(fields) > max(columns):
                    name, label = (fields[column].strip()[:_LONGEST_NAME] for column in columns)
                    rows.append(LabelRow(line=line, name=name, label=key_of(label)))
                else:
                    shown = key_of(fields[0].strip()[:_LONGEST_NAME])
                    faults.append(f"line {line} of {LABELS_FILE} holds {shown!r} alone: give a name and a label")
            line = reader.line_num + 1
    except csv.Error as error:
        faults.append(f"{LABELS_FILE} cannot be read from line {line} on ({error}): see whether a quote is left open")
    return rows, faults


def _columns(fields: list[str]) -> tuple[int, int] | None:
    """Return which columns hold the name and the label, where a row says so; None where it is a row like others."""
    words = [re.sub(r"[\W_]", "", field).casefold() for field in fields]
    names = [i for i, word in enumerate(words) if word in _NAME_HEADERS]
    labels = [i for i, word in enumerate(words) if word in _LABEL_HEADERS]
    if names and labels:
        return names[0], labels[0]
    # one known word is enough where the row is as short as all others
    return (0, 1) if len(fields) == 2 and (names == [0] or labels == [1]) else None


def aliases(name: str) -> Iterator[str]:
    """Yield the names of files that a row may mean, the likeliest first: as written, and without its folders."""
    for written in _spellings(name):
        yield written
        for base in (written.rpartition("/")[2], re.split(r"[/\\]", written)[-1]):
            if base and base != written:
                yield base


def _spellings(text: str) -> tuple[str, ...]:
    """Return a text as it stands and, where it is no UTF-8, as the West's Windows means it."""
    with contextlib.suppress(UnicodeError):
        return (text,) if text.isprintable() else (text, text.encode("utf-8", "surrogateescape").decode("cp1252"))
    return (text,)


def folded(name: str) -> str:
    """Return what names have in common that differ in case or Unicode form only."""
    return unicodedata.normalize("NFC", name).casefold()


def by_folded_name(names: Set[str]) -> Mapping[str, list[str]]:
    """Return the names of files by what they have in common with other spellings of them."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        found[folded(name)].append(name)
    return found


def class_of(label: str, classes: Mapping[str, int]) -> int | None:
    """Return the class that a label means, None where it means none.

    Besides the class's name that is a number in another form, such as 3.0 or 03, and a name that differs in case or
    Unicode form only, where there is one such.
    """
    original = re.sub("/x([0-9a-f]{2})", lambda odd: chr(0xDC00 + int(odd[1], 16)), label)
    for written in (label, *_spellings(original)):
        if written in classes:
            return classes[written]
        number = re.fullmatch(r"0*(\d+)(\.0*)?", written)
        if number and number[1] in classes:
            return classes[number[1]]
        alike = [index for name, index in classes.items() if folded(name) == folded(written)]
        if len(alike) == 1:
            return alike[0]
    return None


def frame_of(
    row: LabelRow, present: Mapping[str, list[str]], is_known: Callable[[str], bool]
) -> tuple[str | None, str]:
    """Find the frame that a row names.

    Args:
        row: of the labels file.
        present: names of the files that are there, from `by_folded_name`.
        is_known: whether a frame of this key was answered before; its file may be gone.

    Returns:
        The frame's key, or None and the reason, as half a sentence.
    """
    for name in aliases(row.name):
        alike = present.get(folded(name), [])
        if name in alike or is_known(key_of(name)):
            return key_of(name), ""
        if len(alike) == 1:
            return key_of(alike[0]), ""
    has_ending = PurePosixPath(row.name).suffix.lower() in IMAGE_SUFFIXES
    for stem in () if has_ending else aliases(row.name):
        there = {name for suffix in IMAGE_SUFFIXES for name in present.get(folded(stem + suffix), [])}
        ended = {stem + ending for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())}
        found = sorted(there | {name for name in ended if is_known(key_of(name))})
        if len(found) > 1:
            return None, f"may mean {found[0]} or {found[1]}: write the name with its ending"
        if found:
            return key_of(found[0]), ""
    return None, "names no frame that is there: write the name of its file"


def label_for(name: str, labels: dict[str, str]) -> str | None:
    """Return the label that earlier rows, by their folded aliases, gave a file that has come only now."""
    return labels.get(folded(name), labels.get(folded(PurePosixPath(name).stem)))


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
