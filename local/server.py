"""Chalice's local server, with our gateway and a handler that keep the whole HTTP contract.

Chalice's own drop the connection on a token without dots, trust claims nobody verified, answer 403
on unknown paths, ignore chunked bodies, send a body to HEAD and strip trailing slashes.
"""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from chalice.config import Config
from chalice.local import LocalDevServer

from chalicelib.errors import MalformedRequest, MethodNotAllowed
from chalicelib.http.parallel_chalice import ParallelChalice
from local import front
from shims.gateway import Answer, Gateway, Request

LocalPage = Callable[[str], tuple[str, bytes] | None]


class Handler(front.Handler):
    """HTTP in, the gateway's answer out; and the pages that only local development has."""

    def __init__(self, *args: Any, gateway: Gateway, exchange: front.Exchange) -> None:
        self._gateway = gateway
        super().__init__(*args, exchange=exchange)

    def refuse_framing(self) -> front.Reply:
        problem = MalformedRequest("Send one valid Content-Length, or chunks.")
        return _reply(self._gateway.refuse(problem, self.command))


def serve(app: ParallelChalice, host: str, port: int, local_page: LocalPage) -> LocalDevServer:
    """A server bound to the address, not yet serving. Raises OSError when the port is taken."""
    gateway = Gateway(app)

    def exchange(method: str, target: str, headers: front.Pairs, body: bytes) -> front.Reply:
        page = local_page(target.partition("?")[0])
        if page is not None and method != "OPTIONS":
            return _reply(_page(app, gateway, method, *page))
        return _reply(gateway.handle(Request(method, target, front.joined(headers), body)))

    def handler(*args: Any, **_chalices: Any) -> Handler:
        return Handler(*args, gateway=gateway, exchange=exchange)

    ours: Any = {"handler_cls": handler, "server_cls": front.Server}  # not of the types that Chalice names
    return LocalDevServer(app, Config.create(), host, port, **ours)


def _page(app: ParallelChalice, gateway: Gateway, method: str, content_type: str, content: bytes) -> Answer:
    if method not in ("GET", "HEAD"):
        return gateway.refuse(MethodNotAllowed(["GET", "HEAD"]), method)
    return Answer(
        200, {**app.common_headers, "X-Request-Id": str(uuid4()), "Content-Type": content_type}, content
    )


def _reply(answer: Answer) -> front.Reply:
    return answer.status, answer.headers.items(), answer.body
