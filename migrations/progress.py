"""Shows on the terminal how far a migration is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

INTERVAL = 0.5
"""Seconds between two looks at an index that is being built."""
BUILD = """\
select phase, greatest(blocks_done, tuples_done), greatest(blocks_total, tuples_total)
from pg_stat_progress_create_index where datname = current_database()"""


class Progress:
    """Lines and bars on standard error."""

    def __init__(self, connect: Callable[[], Any], *, quiet: bool = False) -> None:
        """`connect` opens a connection of its own, on which index builds are watched."""
        self._connect = connect
        self._console = Console(stderr=True, quiet=quiet)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar of rows; call what it yields with the number of further rows."""
        with self._bars() as bars:
            task = bars.add_task(label, total=total)
            yield lambda rows: bars.advance(task, rows)

    @contextmanager
    def index_build(self, name: str) -> Iterator[None]:
        """A bar for the phases of the index that this database builds meanwhile."""
        done = threading.Event()
        with self._bars() as bars, closing(self._connect()) as connection:
            thread = threading.Thread(target=_watch, args=(name, bars, connection, done), daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()

    def _bars(self) -> Bars:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        return Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)


def _watch(name: str, bars: Bars, connection: Any, done: threading.Event) -> None:
    task = bars.add_task(name, total=None)
    with connection.cursor() as cursor:
        while not done.wait(INTERVAL):
            cursor.execute(BUILD)
            for phase, part, total in cursor.fetchall():
                bars.update(task, description=f"{name}: {phase}", completed=part, total=total or None)
