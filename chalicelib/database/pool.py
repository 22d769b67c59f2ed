"""Connections that requests take turns with.

SQLAlchemy's QueuePool does this too; importing it is half of a cold start (docs/performance.md).
"""

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

NEW = 3
"""Seconds. As often, at most, a server that takes no writes has all its connections opened anew."""


class PoolExhausted(Exception):
    """All connections were in use for as long as a request may wait."""


class Connection:
    """psycopg2's connection, and what is known about the session behind it."""

    __slots__ = (
        *("_poll", "cut", "driver", "generation", "line", "opened", "patience", "prepared", "role_is_safe"),
    )

    def __init__(
        self, driver: Any, *, prepares: bool, patience: float = 8, role_is_safe: bool = False
    ) -> None:
        self.driver = driver
        self.patience = patience
        """Seconds that an answer is waited for."""
        self.opened = time.time()  # a frozen function's monotonic clock stands still
        self.generation = 0
        """How often its pool had been emptied before it was opened."""
        self.prepared: set[str] | None = set() if prepares else None
        """Names of the statements that this session has prepared; None where it is not to prepare any."""
        self.role_is_safe = role_is_safe
        """Whether the server has said so: its first string asks (role_check.py)."""
        self.line = socket.socket(fileno=os.dup(driver.fileno()))
        """The connection's socket under a number of its own, good also after libpq has closed the other."""
        self.cut = False
        """Whether the watch cut it, because an answer did not come."""
        self._poll = select.poll()
        self._poll.register(self.line, select.POLLIN)

    def is_dead(self) -> bool:
        """Whether the server hung up: an idle connection has nothing to read but its farewell.

        One system call. Asking psycopg2 would not do: it reads the farewell and misses the end behind it.
        """
        return bool(self._poll.poll(0))

    def is_new(self) -> bool:
        """Whether another one, opened now, would in all likelihood lead to the same server."""
        return 0 <= time.time() - self.opened < NEW

    def close(self) -> None:
        self.driver.close()
        self.line.close()


class Pool:
    """At most `most` connections, of which up to `idle` stay open between requests.

    The one that was used last is the first to be used again. Safe to share between threads.
    """

    def __init__(
        self, connect: Callable[[], Connection], *, idle: int, most: int, recycle: float, timeout: float
    ) -> None:
        """`recycle`: seconds after which a connection is replaced; `timeout`: how long one is waited for."""
        self._connect, self._recycle, self._timeout = connect, recycle, timeout
        self._room_to_rest = idle
        self._generation = 0
        self._resting: list[Connection] = []
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(most)

    def take(self, time_left: float = math.inf) -> Connection:
        """A live connection; those that died or grew old at rest are closed. Raises PoolExhausted.

        Waits for one no longer than `time_left`, in seconds.
        """
        timeout = min(self._timeout, time_left)
        if not self._turns.acquire(timeout=timeout):
            raise PoolExhausted(f"no connection came free in {timeout:.3g} seconds")
        try:
            while resting := self._rested():
                if time.time() - resting.opened < self._recycle and not resting.is_dead():
                    return resting
                resting.close()
            generation = self._generation
            connection = self._connect()
            connection.generation = generation
            return connection
        except BaseException:
            self._turns.release()
            raise

    def give_back(self, connection: Connection) -> None:
        """For the next request; closed where enough are resting, or when it is closed already."""
        with self._lock:
            is_good = not connection.driver.closed and connection.generation == self._generation
            rests = is_good and len(self._resting) < self._room_to_rest
            if rests:
                self._resting.append(connection)
        if not rests:
            connection.close()
        self._turns.release()

    def empty(self) -> None:
        """Close those at rest now, and those in use when they come back; others are opened from now on."""
        with self._lock:
            self._generation += 1
        while resting := self._rested():
            resting.close()

    def close(self) -> None:
        """The same, and none comes to rest any more."""
        self._room_to_rest = 0
        self.empty()

    def _rested(self) -> Connection | None:
        with self._lock:
            return self._resting.pop() if self._resting else None
