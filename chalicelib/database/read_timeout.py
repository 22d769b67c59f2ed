"""Connections whose answer does not come are cut, so that no request waits for ever.

libpq waits for an answer without a limit, and neither statement_timeout nor TCP keepalives help where the
server, or a pooler in front of it, is alive and silent. psycopg2's wait callback could; it would make every
connection of the process an asynchronous one. Here a thread looks on, and costs a request two operations
on a dictionary.
"""

import socket
import threading
import time
from contextlib import suppress
from typing import Protocol


class Cuttable(Protocol):
    """A connection as the watch knows it."""

    line: socket.socket
    cut: bool


class Watch:
    """One thread for all connections of a process; started at the first call, never at import."""

    def __init__(self) -> None:
        self._due: dict[Cuttable, float] = {}
        self._change = threading.Condition()
        self._wakes = 0.0
        """When the thread looks next; 0 while there is none."""

    def begin(self, connection: Cuttable, seconds: float) -> None:
        """From now on, until `end`, cut it after so many seconds.

        Raises RuntimeError when the thread cannot be started; then nothing is watched.
        """
        due = time.monotonic() + seconds
        with self._change:
            if not self._wakes:
                threading.Thread(target=self._look, name="database-watch", daemon=True).start()
                self._wakes = due
            self._due[connection] = due
            if due < self._wakes:
                self._wakes = due
                self._change.notify()

    def end(self, connection: Cuttable) -> None:
        with self._change:
            del self._due[connection]

    def _look(self) -> None:
        with self._change:
            while True:
                now = time.monotonic()
                for connection in [each for each, due in self._due.items() if due <= now]:
                    # Of what is cut only the mark stays: it is in use, and is closed by its user.
                    self._due[connection] = float("inf")
                    connection.cut = True
                    _shut(connection.line)
                self._wakes = min(self._due.values(), default=float("inf"))
                self._change.wait(None if self._wakes == float("inf") else max(0, self._wakes - now))


def _shut(line: socket.socket) -> None:
    """Whoever waits on the connection finds its end, also under TLS."""
    with suppress(OSError):  # the server was faster
        line.shutdown(socket.SHUT_RDWR)
