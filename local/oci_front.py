"""An HTTP server in front of fdk's unix socket, in place of the Fn server of Oracle Functions."""

import http.client
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from local import front

HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length"}
PREFIX = "fn-http-h-"
TIMEOUT = timedelta(seconds=30)
"""As func.yaml has it."""


def connect(listener: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(listener))
    return connection


class _Socket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path)


def serve(listener: Path, host: str, port: int) -> front.Server:
    """A server bound to the address, not yet serving, in front of the fdk that listens at `listener`."""
    one_at_a_time = threading.Lock()  # a function's container takes one call after the other

    def exchange(method: str, target: str, headers: front.Pairs, body: bytes) -> front.Reply:
        with one_at_a_time:
            return _call(listener, method, f"http://{host}:{port}{target}", headers, body)

    return front.Server(exchange, host, port)


def _call(listener: Path, method: str, url: str, headers: front.Pairs, body: bytes) -> front.Reply:
    """Fn's http-stream format: Content-Type unchanged, every other client header with a prefix."""
    call = {
        "Fn-Http-Method": method,
        "Fn-Http-Request-Url": url,
        "Fn-Intent": "httprequest",
        "Fn-Call-Id": uuid4().hex,
        "Fn-Deadline": (datetime.now(UTC) + TIMEOUT).isoformat(),
    }
    connection = _Socket(listener)
    connection.putrequest("POST", "/call")
    for name, value in call.items():
        connection.putheader(name, value)
    for name, value in headers:
        if name.lower() not in HOP_BY_HOP:
            sent = name if name.lower() == "content-type" else f"Fn-Http-H-{name}"
            connection.putheader(sent, value)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    received = {name.lower(): value for name, value in response.getheaders()}
    headers_to_client = [
        (name.removeprefix(PREFIX), value)
        for name, value in received.items()
        if name.startswith(PREFIX) or name == "content-type"
    ]
    return int(received.get("fn-http-status", response.status)), headers_to_client, answer
