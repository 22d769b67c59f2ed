"""Chalice's local server, with a gateway and a handler that keep the whole HTTP contract.

Chalice's own drop the connection on a token without dots, trust claims nobody verified, answer 403
on unknown paths, ignore chunked bodies, send a body to HEAD and strip trailing slashes.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from chalice.app import Chalice
from chalice.config import Config
from chalice.local import ChaliceRequestHandler, LocalDevServer, LocalGateway, ThreadedHTTPServer

from app import COMMON_HEADERS
from chalicelib.errors import MalformedRequest, MethodNotAllowed, Problem

_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_LINE_ENDS = (b"\r\n", b"\n", b"")
LARGEST_READ = 64 * 1024 * 1024
KEPT = 1024 * 1024 + 1
"""One byte more than the API accepts: enough for it to refuse the body as too large."""

LocalPage = Callable[[str], tuple[str, bytes] | None]


class Server(ThreadedHTTPServer):
    request_queue_size = 128


class Gateway(LocalGateway):
    """Plays API Gateway: finds the route, decodes the query, builds the event. Tokens are the app's."""

    def handle_request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> dict[str, Any]:
        raw_path, _, query = path.partition("?")
        route, parameters = self._route(raw_path)
        event = {
            "requestContext": {
                "resourcePath": route,
                "httpMethod": method,
                "path": raw_path,
                "requestId": str(uuid4()),
                "identity": {"sourceIp": "127.0.0.1"},
            },
            "headers": headers,
            "pathParameters": parameters,
            "multiValueQueryStringParameters": parse_qs(query, keep_blank_values=True) or None,
            "stageVariables": None,
            "body": body,
            "isBase64Encoded": False,
        }
        if method == "OPTIONS" and route in self._app_object.routes:
            preflight = self._autogen_options_headers(event)
            return {"statusCode": 200, "headers": preflight, "multiValueHeaders": {}, "body": ""}
        return self._app_object(event, None)

    def _route(self, path: str) -> tuple[str, dict[str, str]]:
        """The template and its parameters, still percent-encoded; an unknown path is its own template."""
        given = path.split("/")
        for template in sorted(self._app_object.routes):
            parts = template.split("/")
            pairs = list(zip(parts, given, strict=False))
            if len(parts) == len(given) and all(
                part == value or (part.startswith("{") and value) for part, value in pairs
            ):
                return template, {part[1:-1]: value for part, value in pairs if part.startswith("{")}
        return path, {}


class Handler(ChaliceRequestHandler):
    """HTTP in, the gateway's answer out."""

    timeout = 60
    disable_nagle_algorithm = True

    def __init__(self, *args: Any, app_object: Chalice, config: Config, local_page: LocalPage) -> None:
        self.local_gateway = Gateway(app_object, config)
        self._local_page = local_page
        BaseHTTPRequestHandler.__init__(self, *args)

    def parse_request(self) -> bool:
        """As http.server does it, but `//orders` stays what it is: an unknown path."""
        if not super().parse_request():
            return False
        self.path = self.requestline.split()[1]
        if self.headers.defects or any("\n" in value for value in self.headers.values()):
            # The parser gave up half-way: what it takes for the body would be read as the next request.
            self.send_error(400, "Malformed header line")
            return False
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What http.server refuses before there is a request for the app."""
        self.close_connection = True
        title = message or self.responses[code][0]
        body = json.dumps({"type": "about:blank", "title": title, "status": code}).encode()
        self._send(code, {"Content-Type": "application/problem+json", "Connection": "close"}, body)

    def version_string(self) -> str:
        return "order-api"

    def _generic_handle(self) -> None:
        body = self._body()
        if body is None:
            self.close_connection = True
            self._send_problem(
                MalformedRequest("Send one valid Content-Length, or chunks."), Connection="close"
            )
            return
        page = self._local_page(self.path.partition("?")[0])
        if page is not None and self.command != "OPTIONS":
            self._send_page(*page)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.local_gateway.handle_request(self.command, self.path, headers, body)
        self._send(answer["statusCode"], answer["headers"], answer["body"].encode())

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = _generic_handle

    def _send_page(self, content_type: str, content: bytes) -> None:
        if self.command in ("GET", "HEAD"):
            headers = {**COMMON_HEADERS, "X-Request-Id": str(uuid4()), "Content-Type": content_type}
            self._send(200, headers, content)
        else:
            self._send_problem(MethodNotAllowed(["GET", "HEAD"]))

    def _send_problem(self, problem: Problem, **headers: str) -> None:
        request_id = str(uuid4())
        response = problem.response(request_id)
        headers = {**COMMON_HEADERS, **headers, "X-Request-Id": request_id}
        self._send(response.status_code, {**headers, **response.headers}, response.body.encode())

    def _send(self, status: int, headers: Mapping[str, Any], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command == "HEAD" or status == 304:
            body = b""
        else:
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


def serve(app: Chalice, host: str, port: int, local_page: LocalPage) -> LocalDevServer:
    """A server bound to the address, not yet serving. Raises OSError when the port is taken."""
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        raise SystemExit("AWS_LAMBDA_FUNCTION_NAME is set, which means: claims were verified. Unset it here.")

    def handler(*args: Any, **kwargs: Any) -> Handler:
        return Handler(*args, local_page=local_page, **kwargs)

    return LocalDevServer(app, Config.create(), host, port, handler_cls=handler, server_cls=Server)
