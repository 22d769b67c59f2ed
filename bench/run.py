"""One run of the bench: how much of everything, on what, by whom."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

from bench.contenders import Contender
from bench.database import Database

Json = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How often everything is measured."""

    warm_up: int
    """Calls of each operation that every instance makes before the first that counts."""
    warm_rounds: int
    warm_calls: int
    """Of each operation, by each contender, in each round."""
    growth_calls: int
    cold_rounds: int
    http_rounds: int
    http_seconds: int
    """Of each contender, for each operation, in each round."""
    trips_rounds: int
    trips_calls: int


SIZES = {
    "full": Size(100, 60, 20, 100_000, 30, 6, 5, 6, 20),
    "quick": Size(30, 12, 8, 4_000, 3, 2, 2, 2, 5),
    "smoke": Size(2, 1, 2, 50, 1, 1, 1, 1, 2),
}
"""`quick` is for working on the code; `smoke` runs every line, and its figures mean nothing."""


@dataclass(frozen=True)
class Run:
    size: Size
    contenders: list[Contender]
    database: Database
    core: int | None
    """Where contenders and their backends run together; None where processes cannot be pinned."""
    progress: Progress
    found: dict[str, Json] = field(default_factory=dict)
    """What the sections before this one have measured."""

    def steps(self, title: str, total: int) -> Callable[[], None]:
        """A line of the progress display. Call the result after each of the steps."""
        task = self.progress.add_task(title, total=total)
        return lambda: self.progress.advance(task)

    def warn(self, message: str) -> None:
        self.progress.console.print(f"[bold red]{message}")
