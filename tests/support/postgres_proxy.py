"""A proxy in front of PostgreSQL's socket that counts what really goes over the wire, both ways."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SOCKET = ".s.PGSQL.5432"
TERMINATE = "X"
READY = b"Z\x00\x00\x00\x05I"
"""The end of an answer: outside a transaction, ready for a query."""


@dataclass
class Traffic:
    """What went by while it was watched (PostgreSQL's protocol 3)."""

    messages: list[str] = field(default_factory=list)
    """`startup`, and then each message's type: `Q` is a simple query."""
    startups: list[dict[str, str]] = field(default_factory=list)
    """The parameters that each connection began with."""
    statements: list[str] = field(default_factory=list)
    """The text of each simple query."""
    trips: int = 0
    """How often a client spoke and then waited for the server."""
    rows: int = 0
    """How many rows the server sent."""


class Proxy:
    """Listens on a socket in `folder` and passes everything on to the server behind `upstream`."""

    def __init__(self, folder: Path, upstream: Path) -> None:
        self.traffic = Traffic()
        self.delay = 0.0
        """Seconds that each round trip takes longer; those of several connections pass at once."""
        self.holds_answers = False
        """Whether what the server says from now on never arrives."""
        self.says_instead = b""
        """What a client hears in the place of each whole answer, as from a pooler that lost its session."""
        self.folder = folder
        self._upstream = upstream
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.folder / SOCKET))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def watched(self) -> Iterator[Traffic]:
        self.traffic = Traffic()
        yield self.traffic

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(os.fspath(self._upstream / SOCKET))
                conversation = Conversation(self, client, server)
                threading.Thread(target=conversation.pass_questions, daemon=True).start()
                threading.Thread(target=conversation.pass_answers, daemon=True).start()

    def count_rows(self, rows: int) -> None:
        with self._lock:
            self.traffic.rows += rows

    def count(self, kind: str, payload: bytes, new_trip: bool) -> None:
        with self._lock:
            self.traffic.messages.append(kind)
            if kind == "startup":
                names_and_values = payload[4:].rstrip(b"\0").decode().split("\0")
                self.traffic.startups.append(dict(pairs(names_and_values)))
            if kind == "Q":
                self.traffic.statements.append(payload.rstrip(b"\0").decode())
            self.traffic.trips += new_trip


class Conversation:
    """One client's connection. A question is counted before it is passed on, and so is its answer."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._answered = True

    def pass_questions(self) -> None:
        stream = self._client.makefile("rb")
        kind = b""  # the startup message has no type
        with suppress(OSError, struct.error):  # the client hung up
            while True:
                head = stream.read(len(kind) + 4)
                (length,) = struct.unpack("!I", head[len(kind) :])
                payload = stream.read(length - 4)
                name = head[: len(kind)].decode() or "startup"
                new_trip = self._answered and name != TERMINATE
                self._proxy.count(name, payload, new_trip)
                time.sleep(self._proxy.delay if new_trip else 0)
                self._answered = False
                self._server.sendall(head + payload)
                kind = b"?"
        self._hang_up()

    def pass_answers(self) -> None:
        with suppress(OSError):
            pending = b""
            while answer := self._server.recv(65536):
                self._answered = True
                rows, pending = rows_in(pending + answer)
                self._proxy.count_rows(rows)
                if self._proxy.says_instead:
                    answer = self._proxy.says_instead if answer.endswith(READY) else b""
                if not self._proxy.holds_answers:
                    self._client.sendall(answer)
        self._hang_up()

    def _hang_up(self) -> None:
        for side in (self._client, self._server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


def pairs(names_and_values: list[str]) -> Iterator[tuple[str, str]]:
    return zip(names_and_values[::2], names_and_values[1::2], strict=True)


def error(code: str) -> bytes:
    """An answer that is this SQLSTATE and nothing else."""
    fields = b"".join(field + b"\0" for field in (b"SERROR", b"VERROR", f"C{code}".encode(), b"Mlost", b""))
    return b"E" + struct.pack("!I", len(fields) + 4) + fields + READY


def rows_in(answer: bytes) -> tuple[int, bytes]:
    """How many rows (DataRow) begin in the server's words, and the message that is not whole yet."""
    rows = at = 0
    while len(answer) >= at + 5:
        (length,) = struct.unpack_from("!I", answer, at + 1)
        if len(answer) < at + 1 + length:
            break
        rows += answer[at : at + 1] == b"D"
        at += 1 + length
    return rows, answer[at:]
