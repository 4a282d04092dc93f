"""A part of a page that a command writes: between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

from pathlib import Path

from persephonee.multi_exit.atomic_files import write_text_atomically


def put_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of `name`; the rest of the page stays.

    Raises:
        ValueError: the page lacks the marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} lacks the marks {begin} and {end}: put them where the text is to stand.")
    write_text_atomically(page, f"{before}{begin}\n{text.strip()}\n{end}{after}")
