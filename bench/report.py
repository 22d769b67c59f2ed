"""Results as tables: on the terminal, and in Markdown that the documentation copies unchanged."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

Json = dict[str, Any]


@dataclass
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    texts: int = 1
    """The number of text columns, from the left; the others are figures."""

    def markdown(self) -> str:
        lines = [
            f"### {self.title}",
            "",
            _line(self.columns),
            _line(["---"] * self.texts + ["---:"] * (len(self.columns) - self.texts)),
            *[_line(row) for row in self.rows],
        ]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"

    def show(self, console: Console) -> None:
        shown = RichTable(*self.columns, title=self.title, title_justify="left", caption_justify="left")
        for column in shown.columns[self.texts :]:
            column.justify = "right"
        for row in self.rows:
            shown.add_row(*row)
        console.print(shown)
        for note in self.notes:
            console.print(note, highlight=False)
        console.print()


def ratio(value: float) -> str:
    return f"{value:.2f}x" if value < 9.95 else f"{value:.1f}x"


def milliseconds(results: Json, digits: int = 2) -> str:
    """Median and p99."""
    return f"{results['median_ms']:,.{digits}f} / {results['p99_ms']:,.{digits}f}"


def markdown(header: Json, tables: Iterable[Table]) -> str:
    """The whole report; the first table has the machine and the versions."""
    rows = [[name, str(value)] for name, value in header.items()]
    about = Table("Measured", ["what", "value"], rows, texts=2)
    return "\n".join(table.markdown() for table in [about, *tables])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
