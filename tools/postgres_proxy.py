"""A proxy in front of PostgreSQL: counts traffic, delays round trips, and injects network faults."""

import ctypes
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.network_faults import AnswerFault, FaultPlan
from tools.postgres_traffic import READY, Counter, MessageParser, Traffic

SOCKET = ".s.PGSQL.5432"
TERMINATE_MESSAGE = b"X\0\0\0\4"
SPIN = 0.0001
"""Seconds at the end of a delay that are spent in a busy loop, because sleep() may return that late. As
short as possible: the scheduler lowers the priority of a thread that uses the CPU."""
PR_SET_TIMERSLACK = 29


class Proxy:
    """Forwards connections to the server whose socket is in the folder `upstream`.

    Listens on a unix socket in `folder`, or on a loopback TCP port where `folder` is None. Bytes and round
    trips are always counted; messages and rows only with `parses`, which needs an unencrypted connection.
    """

    def __init__(
        self,
        folder: Path | None,
        upstream: Path,
        *,
        parses: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        self.delay = 0.0
        """Seconds added to each round trip, half of them in each direction."""
        self.drops_answers = False
        """Whether everything that the server sends from now on is dropped."""
        self.replacement = b""
        """What clients receive instead of each complete answer, as from a pooler that lost its session."""
        self.faults = FaultPlan(rng)
        self.parses = parses
        self.upstream = os.fspath(upstream / SOCKET)
        self.counter = Counter()
        self.flowing = threading.Event()
        """Cleared while the proxy is stalled."""
        self.flowing.set()
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._folder = folder
        self._listener = _listener(folder)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def folder(self) -> Path:
        """Where the unix socket is: the `host` of a connection string."""
        assert self._folder is not None, "this proxy listens on a port"
        return self._folder

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def traffic(self) -> Traffic:
        return self.counter.traffic

    @contextmanager
    def watched(self) -> Iterator[Traffic]:
        """Counts the traffic inside the block."""
        self.counter.traffic = Traffic()
        try:
            yield self.counter.traffic
        finally:
            self.counter.traffic = Traffic()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing passes in either direction inside the block; all of it passes afterwards."""
        self.flowing.clear()
        try:
            yield
        finally:
            self.flowing.set()

    def silent_connections(self) -> int:
        """How many connections had an answer swallowed and are still open."""
        with self._lock:
            return sum(connection.is_silent for connection in self._connections)

    def reset_all(self) -> int:
        """Reset every connection; returns how many there were."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.reset()
        return len(connections)

    def close(self) -> None:
        """Stop listening. Open connections keep working."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flowing.set()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if sys.platform == "linux":  # ends this thread's sleeps on time, not grouped with others'
            ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        with client, socket.socket(socket.AF_UNIX) as server:
            try:
                server.connect(self.upstream)
            except OSError:  # the server is down
                reset(client)
                return
            connection = Connection(self, client, server)
            with self._lock:
                self._connections.add(connection)
            try:
                with suppress(OSError):
                    connection.forward()
            finally:
                with self._lock:
                    self._connections.discard(connection)


class Connection:
    """One client's connection and its connection to the server, forwarded by one thread.

    Data is counted before it is forwarded: once a client has an answer, its traffic is counted.
    """

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._parser = MessageParser() if proxy.parses else None
        self._awaits_answer = False
        """Whether the client has sent something since the server's last answer."""
        self.is_silent = False
        if client.family == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reset(self) -> None:
        reset(self._client)
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def forward(self) -> None:
        """Until one side closes; a client with a swallowed answer is left waiting when the server closes."""
        client = self._client.fileno()
        readable = select.poll()
        for side in (self._client, self._server):
            readable.register(side, select.POLLIN)
        while True:
            for descriptor, _ in readable.poll():
                if descriptor == client:
                    is_open = self._forward_query()
                else:
                    is_open = self._forward_answer()
                    if not is_open and self.is_silent:
                        readable.unregister(descriptor)
                        continue
                if not is_open:
                    return

    def _forward_query(self) -> bool:
        """Returns whether the connection goes on."""
        data = self._client.recv(1 << 18)
        if not data:
            return False
        is_trip = not self._awaits_answer and data != TERMINATE_MESSAGE
        messages = self._parser.messages(data) if self._parser else []
        self._proxy.counter.add_sent(data, is_trip, messages)
        if is_trip:
            self._hold()
        self._awaits_answer = True
        self._proxy.flowing.wait()
        self._server.sendall(data)
        return True

    def _forward_answer(self) -> bool:
        """Returns whether the connection goes on."""
        answer = self._receive_answer()
        if not answer:
            return False
        self._proxy.counter.add_received(answer, self._parser.rows(answer) if self._parser else 0)
        if self._awaits_answer:
            self._hold()
        self._awaits_answer = False
        self._proxy.flowing.wait()
        if self.is_silent or self._proxy.drops_answers:
            return True
        fault = self._proxy.faults.next(answer)
        return self._deliver(answer) if fault is None else self._inject(fault, answer)

    def _hold(self) -> None:
        if self._proxy.delay:
            hold(self._proxy.delay / 2)

    def _receive_answer(self) -> bytes:
        """While a fault is armed, an INSERT's answer is read to its end: it is known to be committed."""
        answer = self._server.recv(1 << 18)
        while self._proxy.faults.is_incomplete(answer):
            more = self._server.recv(1 << 18)
            if not more:
                break
            answer += more
        return answer

    def _deliver(self, answer: bytes) -> bool:
        if self._proxy.replacement:
            answer = self._proxy.replacement if answer.endswith(READY) else b""
        self._client.sendall(answer)
        return True

    def _inject(self, fault: AnswerFault, answer: bytes) -> bool:
        if fault is AnswerFault.SWALLOW:
            self.is_silent = True
            return True
        if fault is AnswerFault.RESET:
            self.reset()
        if fault is AnswerFault.TRUNCATE:
            self._client.sendall(answer[: self._proxy.faults.rng.randrange(len(answer))])
        return False


def _listener(folder: Path | None) -> socket.socket:
    if folder is None:
        return socket.create_server(("127.0.0.1", 0), backlog=128)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(folder / SOCKET))
    listener.listen()
    return listener


def reset(connection: socket.socket) -> None:
    """Closes with RST instead of FIN: data in flight is lost."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes a thread that waits for data and so keeps it open
    connection.close()


def hold(seconds: float) -> None:
    """Waits for a time that is too short for time.sleep() alone."""
    end = time.perf_counter() + seconds
    if seconds > SPIN:
        time.sleep(seconds - SPIN)
    while time.perf_counter() < end:
        pass
