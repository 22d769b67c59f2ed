"""A timeout for the database's answers: a thread shuts down the socket of a connection that waits too long.

libpq waits for an answer without a limit, and neither statement_timeout nor TCP keepalives help when the
server, or a pooler in front of it, is alive but silent. psycopg2's wait callback would help, but makes every
connection of the process asynchronous. The thread costs a request two operations on a dictionary.
"""

import socket
import threading
import time
from contextlib import suppress
from typing import Protocol


class Connection(Protocol):
    """A connection, as far as this module uses it."""

    socket: socket.socket
    timed_out: bool


class ReadTimeout:
    """One thread for all connections of a process; started at the first request, never at import."""

    def __init__(self) -> None:
        self._due: dict[Connection, float] = {}
        self._change = threading.Condition()
        self._wakes_at = 0.0
        """When the thread looks next; 0 while there is no thread."""
        self._closed = False

    def start(self, connection: Connection, seconds: float) -> None:
        """Shut the connection's socket down after so many seconds, unless `stop` comes first.

        Raises RuntimeError when the thread cannot be started; then there is no timeout.
        """
        due = time.monotonic() + seconds
        with self._change:
            if not self._wakes_at:
                threading.Thread(target=self._run, name="database-read-timeout", daemon=True).start()
                self._wakes_at = due
            self._due[connection] = due
            if due < self._wakes_at:
                self._wakes_at = due
                self._change.notify()

    def stop(self, connection: Connection) -> None:
        with self._change:
            del self._due[connection]

    def close(self) -> None:
        """End the thread at its next wake-up without requests; a later `start` starts another."""
        with self._change:
            self._closed = True
            self._change.notify()

    def _run(self) -> None:
        with self._change:
            while self._due or not self._closed:
                now = time.monotonic()
                for connection in [connection for connection, due in self._due.items() if due <= now]:
                    # Only marked, not removed: its request is still using it, and closes it.
                    self._due[connection] = float("inf")
                    connection.timed_out = True
                    _shut_down(connection.socket)
                self._wakes_at = min(self._due.values(), default=float("inf"))
                self._change.wait(None if self._wakes_at == float("inf") else max(0, self._wakes_at - now))
            self._wakes_at = 0.0


def _shut_down(connected: socket.socket) -> None:
    """Wakes the thread blocked in recv() with EOF; works under TLS too."""
    with suppress(OSError):  # the server closed it first
        connected.shutdown(socket.SHUT_RDWR)
