"""`make test-report` writes the slowest tests of a run into docs/testing.md."""

from pathlib import Path

import pytest

from tests.support.slowest import BEGIN, END, replaced, report

JUNIT = """<testsuites><testsuite tests="3" time="4.0">
<testcase classname="tests.test_a" name="test_quick" time="1.0"/>
<testcase classname="tests.test_b" name="test_slow[a@b]@door-gcp" time="2.5"/>
<testcase classname="tests.test_b" name="test_of_a_group@tests/test_b.py" time="2.0"/>
</testsuite></testsuites>"""


def test_the_slowest_come_first(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)

    text = report(tmp_path / "junit.xml")

    assert "3 tests took 4 s; one after the other 6 s" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `tests/test_b.py::test_slow[a@b]` | 2.5 |",
        "| `tests/test_b.py::test_of_a_group` | 2.0 |",
        "| `tests/test_a.py::test_quick` | 1.0 |",
        "| `tests/test_b.py` | 4.5 |",
        "| `tests/test_a.py` | 1.0 |",
    ]


def test_only_the_text_between_the_marks_changes() -> None:
    page = f"above\n{BEGIN}\nold\n{END}\nbelow\n"

    assert replaced(page, "new") == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="make test-report"):
        replaced("a page", "new")
