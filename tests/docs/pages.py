"""The pages in docs/, and the fenced blocks in them."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in sorted((PROJECT / "docs").glob("*.md"))}


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    section: str
    language: str
    text: str


def blocks(page: str, language: str, section: str = "") -> list[Block]:
    """The page's blocks in this language, in order; only those of one section if it is given."""
    parts = re.split(r"^## (.+)$", PAGES[page], flags=re.MULTILINE)
    titles = ["", *parts[1::2]]
    fenced = [
        Block(page, title, fence[2], textwrap.dedent(fence[3]))
        for title, part in zip(titles, parts[::2], strict=True)
        for fence in re.finditer(r"^( *)```(\w+)\n(.*?)^ *```$", part, re.DOTALL | re.MULTILINE)
    ]
    return [block for block in fenced if block.language == language and section in ("", block.section)]


def every_block(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def inline_code(page: str) -> list[str]:
    without_blocks = re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", without_blocks)
