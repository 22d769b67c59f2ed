"""Counts the traffic between clients and PostgreSQL (wire protocol 3)."""

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

TERMINATE = "X"
READY = b"Z\0\0\0\5I"
"""ReadyForQuery outside a transaction: the statements before it are committed, or none of them is."""


@dataclass
class Traffic:
    """The traffic since counting began."""

    trips: int = 0
    """How often a client sent something and then waited for the server."""
    sent: int = 0
    """Bytes from clients."""
    received: int = 0
    """Bytes from the server."""
    messages: list[str] = field(default_factory=list)
    """`startup`, then the type of each client message: `Q` is a simple query."""
    startups: list[dict[str, str]] = field(default_factory=list)
    """The parameters of each connection's startup message."""
    statements: list[str] = field(default_factory=list)
    """The text of each simple query."""
    rows: int = 0
    """Rows (DataRow messages) from the server."""

    def add_message(self, kind: str, payload: bytes) -> None:
        self.messages.append(kind)
        if kind == "startup":
            names_and_values = payload[4:].rstrip(b"\0").decode().split("\0")
            self.startups.append(dict(zip(names_and_values[::2], names_and_values[1::2], strict=True)))
        if kind == "Q":
            self.statements.append(payload.rstrip(b"\0").decode())


class Counter:
    """Adds the traffic of many connections to one Traffic, which can be replaced."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self._lock = threading.Lock()

    def add_sent(self, data: bytes, is_trip: bool, messages: list[tuple[str, bytes]]) -> None:
        with self._lock:
            self.traffic.trips += is_trip
            self.traffic.sent += len(data)
            for kind, payload in messages:
                self.traffic.add_message(kind, payload)

    def add_received(self, data: bytes, rows: int) -> None:
        with self._lock:
            self.traffic.received += len(data)
            self.traffic.rows += rows


class MessageParser:
    """Parses the messages of one connection; an incomplete message waits for the next bytes."""

    def __init__(self) -> None:
        self._from_client = self._from_server = b""
        self._is_started = False

    def messages(self, data: bytes) -> list[tuple[str, bytes]]:
        """Type and payload of each client message that is complete with `data`."""
        self._from_client += data
        return list(self._complete_messages())

    def _complete_messages(self) -> Iterator[tuple[str, bytes]]:
        while len(self._from_client) >= 5:
            type_length = 1 if self._is_started else 0  # the startup message has no type
            (length,) = struct.unpack_from("!I", self._from_client, type_length)
            end = type_length + length
            if len(self._from_client) < end:
                return
            kind = self._from_client[:type_length].decode() or "startup"
            yield kind, self._from_client[type_length + 4 : end]
            self._from_client = self._from_client[end:]
            self._is_started = True

    def rows(self, data: bytes) -> int:
        rows, self._from_server = count_rows(self._from_server + data)
        return rows


def count_rows(data: bytes) -> tuple[int, bytes]:
    """The number of DataRow messages in the server's `data`, and the incomplete message at its end."""
    rows = at = 0
    while len(data) >= at + 5:
        (length,) = struct.unpack_from("!I", data, at + 1)
        if len(data) < at + 1 + length:
            break
        rows += data[at : at + 1] == b"D"
        at += 1 + length
    return rows, data[at:]


def error_response(code: str) -> bytes:
    """An ErrorResponse with this SQLSTATE, and ReadyForQuery."""
    fields = b"".join(field + b"\0" for field in (b"SERROR", b"VERROR", f"C{code}".encode(), b"Mlost", b""))
    return b"E" + struct.pack("!I", len(fields) + 4) + fields + READY
