"""An HTTP server of the standard library alone, for hosts that need one in front of them on this machine."""

import http.client
import json
import re
from collections.abc import Callable, Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Pairs = Sequence[tuple[str, str]]
"""Header names and values in the order of the wire, repeated ones too."""
Reply = tuple[int, Iterable[tuple[str, str]], bytes]
Exchange = Callable[[str, str, Pairs, bytes], Reply]
"""Method, target, headers and body of a request to status, headers and body of its answer."""

_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LINE_ENDS = (b"\r\n", b"\n", b"")
LARGEST_READ = 64 * 1024 * 1024
KEPT = 1024 * 1024 + 1
"""One byte more than the API accepts: enough for it to refuse the body as too large."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


class Headers(http.client.HTTPMessage):
    """A request's headers alone, whatever their Content-Type: the parser would look for parts in a form."""

    def get_content_type(self) -> str:
        return "text/plain"


class Handler(BaseHTTPRequestHandler):
    """Reads a request off the wire as strictly as the hosts' own servers do, and writes its answer."""

    protocol_version = "HTTP/1.1"
    MessageClass = Headers
    timeout = 60
    disable_nagle_algorithm = True

    def __init__(self, *args: Any, exchange: Exchange) -> None:
        self._exchange = exchange
        super().__init__(*args)

    def parse_request(self) -> bool:
        """As http.server does it, but `//orders` stays what it is: an unknown path."""
        if not super().parse_request():
            return False
        self.path = self.requestline.split()[1]
        if self.request_version == "HTTP/0.9" or not self.path.startswith(("/", "*")):
            self.send_error(400, "Malformed request line")
            return False
        if self.headers.defects or any(_CONTROL.search(value) for value in self.headers.values()):
            # The parser gave up half-way: what it takes for the body would be read as the next request.
            self.send_error(400, "Malformed header line")
            return False
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What http.server refuses before there is a request for the app."""
        self.close_connection = True
        self.request_version = self.protocol_version  # else http.server leaves out the status line
        title = message or self.responses[code][0]
        body = json.dumps({"type": "about:blank", "title": title, "status": code}).encode()
        self.send(code, [("Content-Type", "application/problem+json"), ("Connection", "close")], body)

    def version_string(self) -> str:
        return "order-api"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: the app logs each request, and an address may hold a token."""

    def refuse_framing(self) -> Reply:
        """The answer to a body whose length or chunks are wrong."""
        body = b'{"type":"about:blank","title":"Send one valid Content-Length, or chunks.","status":400}'
        return 400, [("Content-Type", "application/problem+json")], body

    def handle_any(self) -> None:
        body = self._body()
        if body is None:
            self.close_connection = True
            status, headers, answer = self.refuse_framing()
            self.send(status, [*headers, ("Connection", "close")], answer)
        else:
            self.send(*self._exchange(self.command, self.path, self.headers.items(), body))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = handle_any

    def send(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        body = b"" if self.command == "HEAD" else body
        if self.command != "HEAD" and status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes | None:
        """The body, cut behind what the API accepts; None when its framing is wrong or it ends early."""
        lengths = self.headers.get_all("Content-Length", [])
        codings = [coding.strip().lower() for coding in self.headers.get_all("Transfer-Encoding", [])]
        if codings:
            return self._chunks() if codings == ["chunked"] and not lengths else None
        if not lengths:
            return b""
        return self._read(int(lengths[0])) if len(lengths) == 1 and _LENGTH.fullmatch(lengths[0]) else None

    def _read(self, length: int) -> bytes | None:
        """`length` bytes off the wire, of which KEPT are handed on, so that the client can hear why.

        None when they end before that.
        """
        kept: bytes = self.rfile.read(min(length, KEPT))
        rest = min(length, LARGEST_READ) - len(kept)
        self.close_connection = self.close_connection or length > LARGEST_READ
        while rest > 0:
            dropped = len(self.rfile.read(min(rest, 65536)))
            if not dropped:
                return None
            rest -= dropped
        return kept

    def _chunks(self) -> bytes | None:
        body, read = bytearray(), 0
        while size := _CHUNK.fullmatch(self.rfile.readline(4096)):
            length = int(size[1], 16)
            if length == 0:
                while self.rfile.readline(65537) not in _LINE_ENDS:
                    pass  # trailers
                return bytes(body)
            chunk = self._read(length)
            if chunk is None or self.rfile.readline(3) not in _LINE_ENDS:
                return None
            body += chunk[: KEPT - len(body)]
            read += length
            if read > LARGEST_READ:
                self.close_connection = True
                return bytes(body)
        return None


def joined(headers: Pairs) -> dict[str, str]:
    """Names in lower case, repeated headers as one (RFC 9110, section 5.3)."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return {name: ",".join(values) for name, values in found.items()}


def serve(exchange: Exchange, host: str, port: int) -> Server:
    """A server bound to the address, not yet serving. Raises OSError when the port is taken."""

    def handler(*args: Any) -> Handler:
        return Handler(*args, exchange=exchange)

    return Server((host, port), handler)
