"""Length limits of README.md, CHANGELOG.md and docs/: sentences, table cells, lines of the README."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = [
    *PROJECT.glob("*.md"),
    *(PROJECT / "docs").rglob("*.md"),
]
MAX_SENTENCE, MAX_CELL, MAX_README = 220, 250, 120
"""Characters without link addresses; lines of the README."""
MEASURED = {
    line for path in (PROJECT / "bench/results").glob("*.md") for line in path.read_text().splitlines()
}
"""Lines written by `make bench`; tests/bench compares them with docs/performance.md."""


def visible(page: Path) -> str:
    """The page without fenced blocks, indented blocks, generated lines and addresses of links."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if line not in MEASURED or not line]
    return re.sub(r"\]\([^)\s]+\)", "]", "\n".join(lines))


def cells(page: Path) -> Iterator[str]:
    for row in re.findall(r"^ *\|(.+)\| *$", visible(page), re.MULTILINE):
        yield from (cell.strip() for cell in re.split(r"(?<!\\)\|", row))


def sentences(page: Path) -> Iterator[str]:
    """List items and paragraphs end a sentence too."""
    prose = re.sub(r"^( *\|.*|#.*|    .*)$", "", visible(page), flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?=(?:[-*]|\d+\.) )", prose):
        yield from re.split(r"(?<=[.!?])\**\s+(?=[\[(*`A-Z])", " ".join(paragraph.split()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_is_longer_than_two_lines(page: Path) -> None:
    assert [sentence for sentence in sentences(page) if len(sentence) > MAX_SENTENCE] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_cell_is_a_paragraph(page: Path) -> None:
    assert [cell for cell in cells(page) if len(cell) > MAX_CELL] == []


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= MAX_README
