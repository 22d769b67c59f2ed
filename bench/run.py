"""One run of the bench: its size, contenders and database."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

from bench.contenders import Contender
from bench.database import Database

Json = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """The number of rounds and calls."""

    warm_up: int
    """Calls of each operation by every instance before measuring."""
    warm_rounds: int
    warm_calls: int
    """Of each operation, by each contender, in each round."""
    growth_calls: int
    cold_warm_up: int
    """Rounds before the measured ones, until the files are in the page cache."""
    cold_rounds: int
    http_rounds: int
    http_seconds: int
    """Of each contender, for each operation, in each round."""
    trips_rounds: int
    trips_calls: int


SIZES = {
    "full": Size(
        warm_up=100,
        warm_rounds=40,
        warm_calls=20,
        growth_calls=100_000,
        cold_warm_up=1,
        cold_rounds=15,
        http_rounds=4,
        http_seconds=4,
        trips_rounds=4,
        trips_calls=10,
    ),
    "quick": Size(
        warm_up=30,
        warm_rounds=12,
        warm_calls=8,
        growth_calls=4_000,
        cold_warm_up=1,
        cold_rounds=3,
        http_rounds=2,
        http_seconds=2,
        trips_rounds=2,
        trips_calls=5,
    ),
    "smoke": Size(
        warm_up=2,
        warm_rounds=1,
        warm_calls=2,
        growth_calls=50,
        cold_warm_up=0,
        cold_rounds=1,
        http_rounds=1,
        http_seconds=1,
        trips_rounds=1,
        trips_calls=2,
    ),
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
    results: dict[str, Json] = field(default_factory=dict)
    """The results of the earlier sections."""

    def steps(self, title: str, total: int) -> Callable[[], None]:
        """A line of the progress display. Call the result after each of the steps."""
        task = self.progress.add_task(title, total=total)
        return lambda: self.progress.advance(task)

    def warn(self, message: str) -> None:
        self.progress.console.print(f"[bold red]{message}")
