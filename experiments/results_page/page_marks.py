"""Parts of a page between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

On a page that a person writes, a command fills such a part; on a page that a command writes, a person does, and what is
written there stays when the page is made again.
"""

from pathlib import Path

from persephonee.clients.errors import ClientSettingsError
from persephonee.multi_exit.atomic_files import check_writable, write_text_atomically

BEGIN, END = "<!-- written by hand: begin -->", "<!-- written by hand: end -->"
"""The marks around what a person writes on a page that a command makes."""


def written_part(page: str) -> str:
    """Return what a person has written on an earlier page, between its two marks; empty where the page lacks them."""
    _, found, rest = page.partition(BEGIN)
    written, closed, _ = rest.partition(END)
    return written.strip() if found and closed else ""


def put_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of `name`; the rest of the page stays.

    Raises:
        ClientSettingsError: the page lacks the marks.
        OSError: there is no page, or it cannot be written.
    """
    before, after = check_marks(page, name)
    begin, end = _marks(name)
    write_text_atomically(page, f"{before}{begin}\n{text.strip()}\n{end}{after}")


def check_marks(page: Path, name: str) -> tuple[str, str]:
    """Return what stands before and after the marks of `name`.

    Raises:
        ClientSettingsError: the page lacks the marks.
        OSError: there is no page, or it cannot be written.
    """
    begin, end = _marks(name)
    before, found, rest = page.read_text(encoding="utf-8", errors="replace").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ClientSettingsError(f"{page} lacks the marks {begin} and {end}: put them where the text is to stand.")
    check_writable(page.parent)
    return before, after


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
