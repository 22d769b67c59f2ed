"""A pool of connections, shared by the threads of a process.

Written by hand: psycopg2's pool never waits for a free connection, and importing SQLAlchemy's QueuePool is
half of a cold start (docs/performance.md).
"""

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from psycopg2.extensions import connection as Driver

MIN_RECONNECT_INTERVAL = 3
"""A read-only server causes the pool to reconnect at most once in this many seconds."""


class PoolExhausted(Exception):
    """All connections were in use for as long as a request may wait."""


class Connection:
    """psycopg2's connection, and the state of the session on it."""

    __slots__ = (
        "_poll",
        "driver",
        "generation",
        "opened",
        "prepared",
        "read_timeout",
        "role_is_safe",
        "socket",
        "timed_out",
    )

    def __init__(
        self, driver: Driver, *, prepares: bool, read_timeout: float = 8, role_is_safe: bool = False
    ) -> None:
        self.driver = driver
        self.read_timeout = read_timeout
        """Seconds that a request waits for an answer."""
        self.opened = time.time()  # not the monotonic clock: it stops while a function is frozen
        self.generation = 0
        """How often its pool had been emptied when it was opened."""
        self.prepared: set[str] | None = set() if prepares else None
        """Names of the statements that this session has prepared; None: it prepares none."""
        self.role_is_safe = role_is_safe
        """Whether the session has passed the role check, which its first string contains (role_check.py)."""
        self.socket = socket.socket(fileno=os.dup(driver.fileno()))
        """The connection's socket under its own descriptor, valid also after libpq has closed the other."""
        self.timed_out = False
        """Whether the read timeout has shut the socket down."""
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)

    def is_dead(self) -> bool:
        """Whether the server has closed it: on an idle connection nothing else can be readable.

        One system call. psycopg2 does not notice: it reads the server's last message, but not the EOF after.
        """
        return bool(self._poll.poll(0))

    def is_new(self) -> bool:
        """Whether a connection opened now would most likely lead to the same server."""
        return 0 <= time.time() - self.opened < MIN_RECONNECT_INTERVAL

    def close(self) -> None:
        self.driver.close()
        self.socket.close()


class Pool:
    """At most `max_open` connections, of which up to `max_idle` stay open between requests.

    Last in, first out. Safe to share between threads.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        max_idle: int,
        max_open: int,
        recycle: float,
        timeout: float,
    ) -> None:
        """`recycle`: seconds until a connection is replaced; `timeout`: seconds to wait for a free one."""
        self._connect, self._recycle, self._timeout = connect, recycle, timeout
        self._max_idle = max_idle
        self._generation = 0
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._free = threading.Semaphore(max_open)

    def take(self, time_left: float = math.inf) -> Connection:
        """A live connection; idle ones that are dead or too old are closed. Raises PoolExhausted.

        Waits for a free one, but no longer than `time_left`, in seconds.
        """
        timeout = min(self._timeout, time_left)
        if not self._free.acquire(timeout=timeout):
            raise PoolExhausted(f"no connection came free in {timeout:.3g} seconds")
        try:
            while idle := self._pop_idle():
                if time.time() - idle.opened < self._recycle and not idle.is_dead():
                    return idle
                idle.close()
            generation = self._generation
            connection = self._connect()
            connection.generation = generation
            return connection
        except BaseException:
            self._free.release()
            raise

    def give_back(self, connection: Connection) -> None:
        """Keep it for the next request; close it when enough are idle or the pool was emptied meanwhile."""
        with self._lock:
            is_good = not connection.driver.closed and connection.generation == self._generation
            stays = is_good and len(self._idle) < self._max_idle
            if stays:
                self._idle.append(connection)
        if not stays:
            connection.close()
        self._free.release()

    def empty(self) -> None:
        """Close idle connections now and busy ones when they are given back; later requests connect again."""
        with self._lock:
            self._generation += 1
        while idle := self._pop_idle():
            idle.close()

    def close(self) -> None:
        """Empty it, and keep no connection from now on."""
        self._max_idle = 0
        self.empty()

    def _pop_idle(self) -> Connection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None
