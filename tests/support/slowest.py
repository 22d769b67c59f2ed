"""Writes the slowest tests of a run into a page.

`python -m tests.support.slowest build/junit.xml docs/testing.md`, which `make test-report` calls.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

BEGIN, END = "<!-- make test-report -->", "<!-- end of make test-report -->"
ROWS = 20
Seconds = defaultdict[str, float]


def report(junit: Path) -> str:
    """The total and two tables in Markdown, from the file that pytest --junit-xml wrote."""
    (suite,) = ElementTree.parse(junit).getroot().iter("testsuite")
    tests: Seconds = defaultdict(float)
    files: Seconds = defaultdict(float)
    for case in suite.iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        name = case.get("name", "").rpartition("@")[0] or case.get("name", "")
        seconds = float(case.get("time", "0"))
        tests[f"`{file}::{name[:80]}`".replace("|", "\\|")] += seconds
        files[f"`{file}`"] += seconds
    wall, serial = float(suite.get("time", "0")), sum(files.values())
    return "\n".join(
        [
            f"{suite.get('tests')} tests took {wall:.0f} s; one after the other {serial:.0f} s "
            "(with set-up and teardown).",
            "",
            *table("Test", tests),
            "",
            *table("File", files),
        ]
    )


def table(title: str, seconds: Seconds) -> list[str]:
    longest = sorted(seconds.items(), key=lambda row: -row[1])[:ROWS]
    rows = [f"| {name} | {taken:.1f} |" for name, taken in longest]
    return [f"| {title} | Seconds |", "|---|---:|", *rows]


def replaced(page: str, text: str) -> str:
    """The page with the text between the two marks replaced."""
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    updated, marks = between.subn(lambda _: f"{text}\n", page)
    if marks != 1:
        raise SystemExit(f"The page needs one line {BEGIN} and one line {END} below it")
    return updated


if __name__ == "__main__":
    source, page = map(Path, sys.argv[1:])
    page.write_text(replaced(page.read_text(), report(source)))
