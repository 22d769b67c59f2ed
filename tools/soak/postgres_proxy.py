"""A network that misbehaves: between the API, which sees a TCP port, and PostgreSQL's socket behind it."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

SOCKET = ".s.PGSQL.5432"
READY = b"Z\0\0\0\5I"
"""ReadyForQuery, outside any transaction: what the question did is committed, or nothing of it is."""
WROTE = b"INSERT 0 "
"""CommandComplete of an INSERT."""


class Shot(Enum):
    """What happens to one answer of the server."""

    TRUNCATE = "cut off in the middle"
    RESET = "the connection is reset instead"
    SWALLOW = "it and all that follows on its connection never come, and nobody hangs up"
    CUT_AFTER_COMMIT = "an order is committed, and the connection is cut instead of the answer"


class Proxy:
    """Listens on a port of loopback and passes everything on to the server whose socket is in `upstream`."""

    def __init__(self, upstream: Path, chance: random.Random | None = None) -> None:
        self.delay = 0.0
        """Seconds that each answer comes later."""
        self.fired: Counter[Shot] = Counter()
        """How often each kind hit an answer."""
        self.chance = chance or random.Random()
        self._upstream = upstream
        self._flowing = threading.Event()
        self._flowing.set()
        self._armed: Counter[Shot] = Counter()
        self._lock = threading.Lock()
        self._conversations: set[Conversation] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, shot: Shot, answers: int) -> None:
        """So many of the next answers that it can happen to."""
        with self._lock:
            self._armed[shot] += answers

    def disarm(self) -> None:
        with self._lock:
            self._armed.clear()

    def armed(self) -> int:
        with self._lock:
            return self._armed.total()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing moves, in neither direction; then all of it arrives."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    def silent(self) -> int:
        """Connections on which an answer was swallowed, and which nobody has given up yet."""
        with self._lock:
            return sum(conversation.silent for conversation in self._conversations)

    def reset_all(self) -> int:
        """Every connection ends at once, without a farewell; how many there were."""
        with self._lock:
            conversations = list(self._conversations)
        for conversation in conversations:
            conversation.reset()
        return len(conversations)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        self.reset_all()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(str(self._upstream / SOCKET))
                except OSError:  # nobody listens there
                    server.close()
                    reset(client)
                    continue
                conversation = Conversation(self, client, server)
                with self._lock:
                    self._conversations.add(conversation)
                conversation.begin()

    def wait(self) -> None:
        self._flowing.wait()

    def shot_at(self, answer: bytes) -> Shot | None:
        """What happens to this answer."""
        with self._lock:
            for shot in self._armed:
                if shot is Shot.CUT_AFTER_COMMIT and not (WROTE in answer and answer.endswith(READY)):
                    continue
                if self._armed[shot] > 0:
                    self._armed[shot] -= 1
                    self.fired[shot] += 1
                    return shot
        return None

    def ended(self, conversation: "Conversation") -> None:
        with self._lock:
            self._conversations.discard(conversation)


class Conversation:
    """One connection of the API's, and the one behind it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.silent = False

    def begin(self) -> None:
        threading.Thread(target=self._pass_questions, daemon=True).start()
        threading.Thread(target=self._pass_answers, daemon=True).start()

    def reset(self) -> None:
        reset(self._client)
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def _pass_questions(self) -> None:
        with suppress(OSError):
            while question := self._client.recv(65536):
                self._proxy.wait()
                self._server.sendall(question)
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._proxy.ended(self)

    def _pass_answers(self) -> None:
        with suppress(OSError):
            while answer := self._answer():
                self._proxy.wait()
                time.sleep(self._proxy.delay)
                if not self.silent:
                    self._deliver(answer, self._proxy.shot_at(answer))
        if not self.silent:
            self._hang_up()

    def _answer(self) -> bytes:
        """The server's next words: of an order, all of them, so that it is known to be committed."""
        answer = self._server.recv(65536)
        while WROTE in answer and not answer.endswith((READY, b"Z\0\0\0\5E", b"Z\0\0\0\5T")):
            more = self._server.recv(65536)
            if not more:
                break
            answer += more
        return answer

    def _deliver(self, answer: bytes, shot: Shot | None) -> None:
        if shot is None:
            self._client.sendall(answer)
        elif shot is Shot.SWALLOW:
            self.silent = True
        elif shot is Shot.RESET:
            self.reset()
        else:
            if shot is Shot.TRUNCATE:
                self._client.sendall(answer[: self._proxy.chance.randrange(len(answer))])
            self._hang_up()

    def _hang_up(self) -> None:
        for side in (self._client, self._server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


def reset(connection: socket.socket) -> None:
    """RST instead of FIN: what was on its way is lost."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A thread that waits for words on it would keep it open.
        connection.shutdown(socket.SHUT_RD)
    connection.close()
