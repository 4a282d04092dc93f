"""Users' ids: checked and turned into folder names here alone, for data, stores, messages and enrolment.

An id is 1 to 128 printable characters. Two ids that differ in case or in Unicode form only are two users, and their
folders stay apart on disks that see no such difference.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.limits import MAX_ID_LENGTH

_PLAIN = re.compile(r"[a-z0-9_](?:[a-z0-9._-]{0,78}[a-z0-9_-])?")
"""Lower case, so that no other id is equal to it on a disk that ignores case."""

_UNUSABLE = re.compile(r"[^A-Za-z0-9._-]")

_WINDOWS_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")


def id_complaint(client_id: str) -> str | None:
    """Return what keeps a text from being a user's id, as half a sentence; None where nothing does."""
    if not client_id.strip():
        return "it is empty"
    if len(client_id) > MAX_ID_LENGTH:
        return f"it has {len(client_id)} characters"
    if client_id != client_id.strip():
        return "it begins or ends with a space"
    odd = next((letter for letter in client_id if not letter.isprintable()), None)
    return None if odd is None else f"it holds the character U+{ord(odd):04X}, which cannot be printed"


def check_ids(client_ids: Sequence[str], where: str) -> None:
    """Refuse a data set with an id that cannot be used.

    Args:
        client_ids: all of them.
        where: the column or the file, for the sentence.

    Raises:
        BrokenDataError: an id is none, or stands there twice.
    """
    for client_id in client_ids:
        complaint = id_complaint(client_id)
        if complaint:
            raise BrokenDataError(
                f"{where} holds the user id {shown(client_id)}, which cannot be used: {complaint}; "
                f"give 1 to {MAX_ID_LENGTH} printable characters."
            )
    if len(set(client_ids)) != len(client_ids):
        twice = next(client_id for client_id in client_ids if client_ids.count(client_id) > 1)
        raise BrokenDataError(f"{where} holds two users with the id {shown(twice)}; give each an id of its own.")


def folder_name(client_id: str) -> str:
    """Return the name of a user's folder: the id itself where it is plain, else what is plain of it and a digest.

    At most 80 letters of ASCII. Two ids have two names, and these differ by more than case.
    """
    if _PLAIN.fullmatch(client_id) and not _WINDOWS_DEVICES.fullmatch(client_id):
        return client_id
    digest = hashlib.sha256(client_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{_UNUSABLE.sub('_', client_id)[:40].lstrip('.-')}~{digest}"


def find_user(client_ids: Sequence[str], named: str) -> int | None:
    """Return the index of the user whom a person named, None where there is none.

    A keyboard and a file may write one letter in two Unicode forms: such an id is found where it is the only one.
    """
    if named in client_ids:
        return client_ids.index(named)
    wanted = unicodedata.normalize("NFC", named)
    alike = [index for index, known in enumerate(client_ids) if unicodedata.normalize("NFC", known) == wanted]
    return alike[0] if len(alike) == 1 else None


def shown(client_id: str) -> str:
    """Return an id as it may stand in a sentence: short, printable, in quotes."""
    text = ascii(client_id) if not client_id.isprintable() else repr(client_id)
    return text if len(text) <= 40 else f"{text[:36]}...'"
