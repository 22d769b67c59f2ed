"""A proxy in front of PostgreSQL's socket: counts bytes and round trips, and can make the way longer.

It knows no more of the protocol than its last message: a round trip begins whenever a client speaks after the
server has spoken. Half of the delay is spent on the way there and half on the way back.
"""

import ctypes
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SOCKET = ".s.PGSQL.5432"
TERMINATE = b"X\0\0\0\4"
LATE = 0.0001
"""Seconds by which a sleep may end late; they are waited for in a loop. Not longer than needed: whoever has
computed all the time is the last to get the processor when somebody else wants it too."""
PR_SET_TIMERSLACK = 29


@dataclass
class Traffic:
    trips: int = 0
    sent: int = 0
    """Bytes of the clients."""
    received: int = 0


class Proxy:
    """Listens in `folder` and passes every byte on to the server whose sockets are in `upstream`."""

    def __init__(self, folder: Path, upstream: Path) -> None:
        self.delay = 0.0
        """Seconds by which each round trip is longer."""
        self.traffic = Traffic()
        self._upstream = os.fspath(upstream / SOCKET)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(folder / SOCKET))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def watched(self) -> Iterator[Traffic]:
        """What passes inside the block."""
        self.traffic = Traffic()
        try:
            yield self.traffic
        finally:
            self.traffic = Traffic()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if sys.platform == "linux":  # sleeps of this thread end on time, and not together with others'
            ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._upstream)
            self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        """Until one side hangs up. Counts before it passes on: whoever has an answer finds it counted."""
        client_spoke = False
        readable = select.poll()
        for side in (client, server):
            readable.register(side, select.POLLIN)
        while True:
            for descriptor, _ in readable.poll():
                from_client = descriptor == client.fileno()
                data = (client if from_client else server).recv(1 << 18)
                if not data or data == TERMINATE:
                    return
                if from_client:
                    self.traffic.trips += not client_spoke
                    self.traffic.sent += len(data)
                else:
                    self.traffic.received += len(data)
                if from_client != client_spoke:
                    hold(self.delay / 2)
                client_spoke = from_client
                (server if from_client else client).sendall(data)


def hold(seconds: float) -> None:
    """Wait for a time that is too short for time.sleep() alone."""
    end = time.perf_counter() + seconds
    if seconds > LATE:
        time.sleep(seconds - LATE)
    while time.perf_counter() < end:
        pass
