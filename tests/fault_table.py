"""The table of docs/reliability.md from what the fault tests record: `python -m tests.fault_table JUNIT.xml PAGE.md`.

Replaces what stands between the page's two marks; nothing in the table is typed by hand.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

from persephonee.experiments.results_page.page_marks import put_between

NAMES = ("fault", "outcome", "seconds")


def rows_of(report: Path) -> list[dict[str, str]]:
    """Return what each test recorded, in the order of the tests.

    Raises:
        ValueError: a test failed, or none recorded anything.
    """
    rows = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = case.attrib["name"]
        if case.find("failure") is not None or case.find("error") is not None:
            raise ValueError(f"{name} failed: a table is made of tests that pass.")
        recorded = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        if set(NAMES) <= recorded.keys():
            rows.append({**recorded, "test": name.split("[")[0]})
    if not rows:
        raise ValueError(f"{report} has no fault: make it with `make test-faults`.")
    return rows


def table_of(rows: list[dict[str, str]]) -> str:
    """Return the rows as Markdown."""
    lines = ["| fault | outcome | seconds | test |", "|---|---|---|---|"]
    for row in rows:
        outcome = row["outcome"].replace("|", "\\|")
        lines.append(f"| {row['fault']} | {outcome} | {row['seconds']} | `{row['test']}` |")
    return "\n".join(lines)


def main(report: Path, page: Path) -> None:
    """Put the table into the page."""
    put_between(page, "faults", table_of(rows_of(report)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
