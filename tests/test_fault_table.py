import pytest

from tests.fault_table import main

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
CASE = '<testcase name="test_a[x]"><properties>{}</properties></testcase>'
PROPERTIES = "".join(
    f'<property name="{name}" value="{value}"/>'
    for name, value in (("fault", "a plug is pulled"), ("outcome", "failed: a | b"), ("seconds", "61"))
)


def test_the_table_between_the_marks_is_replaced_and_the_rest_stays(tmp_path):
    report, page = tmp_path / "junit.xml", tmp_path / "page.md"
    report.write_text(f'<testsuites><testsuite>{CASE.format(PROPERTIES)}<testcase name="b"/></testsuite></testsuites>')
    page.write_text(f"# A page\n{BEGIN}\nold\n{END}\nThe end.\n")
    for _ in range(2):
        main(report, page)
        assert page.read_text() == (
            f"# A page\n{BEGIN}\n| fault | outcome | seconds | test |\n|---|---|---|---|\n"
            f"| a plug is pulled | failed: a \\| b | 61 | `test_a` |\n{END}\nThe end.\n"
        )


@pytest.mark.parametrize(
    ("cases", "says"),
    [('<testcase name="b"><failure/></testcase>', "b failed"), ('<testcase name="b"/>', "has no fault")],
)
def test_a_table_of_nothing_or_of_failures_is_refused(tmp_path, cases, says):
    (tmp_path / "junit.xml").write_text(f"<testsuite>{cases}</testsuite>")
    (tmp_path / "page.md").write_text(f"{BEGIN}{END}")
    with pytest.raises(ValueError, match=says):
        main(tmp_path / "junit.xml", tmp_path / "page.md")


def test_a_page_without_marks_is_refused(tmp_path):
    (tmp_path / "junit.xml").write_text(f"<testsuite>{CASE.format(PROPERTIES)}</testsuite>")
    (tmp_path / "page.md").write_text(BEGIN)
    with pytest.raises(ValueError, match="lacks the marks"):
        main(tmp_path / "junit.xml", tmp_path / "page.md")
