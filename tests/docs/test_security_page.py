"""docs/security.md: each promise has a test, and every test and file that it names exists."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs/security.md").read_text()
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ACTORS, PROMISES, TESTS, RISKS, SECTIONS = (
    "Who may attack, and what stops them",
    "Promises",
    "Tests of the promises",
    "OWASP API Security Top 10, 2023",
    "OWASP ASVS 5.0.0",
)


def table(title: str) -> list[list[str]]:
    """The rows of a section's table, without its header."""
    section = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    text = section[section.index(title) + 1]
    rows = re.findall(r"^\| (.+) \|$", text, re.MULTILINE)
    return [row.split(" | ") for row in rows[1:]]


def numbers(cell: str) -> Iterator[int]:
    """The numbers in a cell: `1, 3 to 5` is 1, 3, 4 and 5."""
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", re.sub(r"\[.*", "", cell)):
        yield from range(int(first), int(last or first) + 1)


@cache
def functions_in(file: str) -> set[str]:
    """The top-level functions of a file, without importing it; empty if the file does not exist."""
    path = PROJECT / file
    nodes = ast.parse(path.read_text()).body if path.is_file() else []
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def exists_in_project(path: str) -> bool:
    """Whether a path or glob exists below the project's folder or chalicelib/."""
    return any(folder.glob(path.rstrip("/")) for folder in (PROJECT, PROJECT / "chalicelib"))


def test_every_test_named_on_security_page_exists() -> None:
    named = NODE.findall(PAGE)

    assert len(named) > 50
    assert [f"{file}::{name}" for file, name in named if name not in functions_in(file)] == []
    assert len(re.findall(r"`[^`]*test_[^`]*::[^`]*`", PAGE)) == len(named), "a test is misspelt"


def test_every_promise_names_its_tests_and_files() -> None:
    promises = table(PROMISES)

    assert [int(number) for number, *_ in promises] == list(range(1, len(promises) + 1))
    tested = [number for number, test in table(TESTS) if NODE.match(test)]
    assert list(dict.fromkeys(tested)) == [number for number, *_ in promises]
    for _, promise, places in promises:
        files = re.findall(r"`([^`]+)`", places)
        assert files, promise
        assert [path for path in files if not exists_in_project(path)] == [], promise


def test_every_file_named_on_security_page_exists() -> None:
    files = re.findall(r"`((?:tests|chalicelib|deploy|shims|local|audit)/[\w/.]+|\w+\.(?:py|sql))[`:]", PAGE)

    assert [path for path in files if not exists_in_project(path)] == []


def test_all_ten_owasp_risks_are_listed() -> None:
    risks = [risk.split(" ")[0] for risk, *_ in table(RISKS)]

    assert risks == [f"API{number}:2023" for number in range(1, 11)]


def test_every_promise_is_referenced_by_valid_numbers() -> None:
    promises = set(range(1, len(table(PROMISES)) + 1))
    number_cells = [cells[-1] for title in (ACTORS, RISKS, SECTIONS) for cells in table(title)]

    for cell in number_cells:
        assert set(numbers(cell)), cell
        assert set(numbers(cell)) <= promises, cell
    assert {number for cell in number_cells for number in numbers(cell)} == promises


def test_asvs_sections_are_unique_and_in_order() -> None:
    sections = [re.fullmatch(r"V(\d+)\.(\d+) [A-Z].+", section) for section, *_ in table(SECTIONS)]
    order = [(int(section[1]), int(section[2])) for section in sections if section]

    assert len(order) == len(sections)
    assert order == sorted(set(order))
