"""An HTTP server around a function, in this process: gunicorn's threaded worker without its arbiter."""

import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http.errors import ExpectationFailed, LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import ThreadWorker

Pairs = Sequence[tuple[str, str]]
"""Header names and values in the order of the request, with repeated ones; gunicorn changes their case."""
Reply = tuple[int, Iterable[tuple[str, str]], bytes]
Exchange = Callable[[str, str, Pairs, bytes], Reply]
"""Method, target, headers and body of a request to status, headers and body of its answer."""

SETTINGS = {
    "threads": 64,
    "keepalive": 15,
    "graceful_timeout": 5,
    "limit_request_line": 8190,  # its most
    "limit_request_field_size": 64 * 1024,  # tokens longer than the API accepts get its 401, not a 431
    "forwarded_allow_ips": "",  # no proxy on this machine is trusted
    "loglevel": "error",  # warnings quote the rejected line, which may contain a token
}
STATUSES = {LimitRequestLine: 414, LimitRequestHeaders: 431, ExpectationFailed: 417}
"""By gunicorn's error; 400 for all others."""
MAX_READ = 64 * 1024 * 1024
MAX_KEPT_BYTES = 1024 * 1024 + 1
"""One byte more than the API accepts, so that the API rejects a larger body."""


class _Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Serves in the thread that calls init_process(), without signal handlers."""

    def __init__(self, listener: socket.socket, application: "_Application", settings: Config) -> None:
        super().__init__(0, os.getppid(), [listener], application, 0, settings, Logger(settings))
        self._open: set[socket.socket] = set()
        self.running = threading.Event()

    def run(self) -> None:
        self.running.set()
        super().run()

    def init_signals(self) -> None:
        """Does nothing: gunicorn's handlers are for a separate worker process."""

    def handle(self, conn: Any) -> Any:
        self._open.add(conn.sock)
        try:
            return super().handle(conn)
        finally:
            self._open.discard(conn.sock)

    def disconnect(self) -> None:
        """Ends the requests in progress: at its exit the interpreter would wait for their threads."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.tpool.shutdown(wait=False, cancel_futures=True)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:  # noqa: ARG002
        """Answers a request that gunicorn rejects before it reaches the application, as problem+json."""
        status = STATUSES.get(type(exc), 400)
        if not isinstance(exc, ParseException):
            self.log.error("unforeseen error", exc_info=exc)
            status = 500
        title = http.client.responses[status]
        body = json.dumps({"type": "about:blank", "title": title, "status": status}).encode()
        head = [
            f"HTTP/1.1 {status} {title}",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        with suppress(OSError):
            client.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)


class _Application:
    """The exchange as the WSGI application that gunicorn loads."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._current = threading.local()

    def keep_request(self, _worker: ThreadWorker, request: Any) -> None:
        """gunicorn's hook before each request: WSGI's environ joins repeated headers."""
        self._current.headers = [(name.title(), value) for name, value in request.headers]

    def wsgi(self) -> Callable[..., list[bytes]]:
        return self._answer

    def _answer(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        method = environ["REQUEST_METHOD"]
        if environ.get("HTTP_TRANSFER_ENCODING", "chunked").strip().lower() != "chunked":
            raise ParseException("a transfer coding that is not decoded here")  # gunicorn passes it on
        body = _body(environ["wsgi.input"], environ.get("CONTENT_LENGTH"))
        status, headers, answer = self._exchange(method, environ["RAW_URI"], self._current.headers, body)
        sent = [*headers]
        if method == "HEAD" or status == 304:
            answer = b""
        else:
            sent.append(("Content-Length", str(len(answer))))
        start_response(f"{status} {http.client.responses.get(status, 'Unknown')}", sent)
        return [answer] if answer else []


class Server:
    """Bound to the address, not yet serving. Raises OSError when the port is taken."""

    def __init__(self, exchange: Exchange, host: str, port: int) -> None:
        self._listener = socket.create_server((host, port), backlog=128)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._listener.getsockname()[1]
        application = _Application(exchange)
        settings = Config()
        for name, value in {**SETTINGS, "pre_request": application.keep_request}.items():
            settings.set(name, value)
        self._worker = _Worker(self._listener, application, settings)

    def serve_forever(self) -> None:
        """Until another thread calls shutdown(), or this one gets an exception from a signal handler."""
        try:
            self._worker.init_process()
        finally:
            self._worker.disconnect()
            self._listener.close()

    def shutdown(self) -> None:
        """Requests in progress get a few seconds to end. Waits until serve_forever() has begun."""
        self._worker.running.wait(5)
        self._worker.handle_exit(None, None)


def _body(stream: Any, length: str | None) -> bytes:
    """The body, truncated to MAX_KEPT_BYTES. The rest is read and dropped: then the client gets the answer.

    Raises ParseException when it ends before its Content-Length.
    """
    kept: bytes = stream.read(MAX_KEPT_BYTES)
    read = len(kept)
    while read < MAX_READ and (dropped := len(stream.read(65536))):
        read += dropped
    if length and read < min(int(length), MAX_READ):
        raise ParseException("the body ended before its Content-Length")
    return kept


def joined(headers: Pairs) -> dict[str, str]:
    """Names in lower case, repeated headers as one (RFC 9110, section 5.3)."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value)
    return {name: ",".join(several) for name, several in values.items()}
