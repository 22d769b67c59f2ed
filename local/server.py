"""The server of `make run`: the gateway, and pages that only local development has."""

from collections.abc import Callable
from uuid import uuid4

from chalicelib.errors import MethodNotAllowed
from chalicelib.http.parallel_chalice import ParallelChalice
from local import front
from shims.gateway import Answer, Gateway, Request

LocalPage = Callable[[str], tuple[str, bytes] | None]


def serve(app: ParallelChalice, host: str, port: int, local_page: LocalPage) -> front.Server:
    """A server bound to the address, not yet serving. Raises OSError when the port is taken."""
    gateway = Gateway(app)

    def exchange(method: str, target: str, headers: front.Pairs, body: bytes) -> front.Reply:
        page = local_page(target.partition("?")[0])
        if page is not None and method != "OPTIONS":
            return _reply(_page(app, gateway, method, *page))
        return _reply(gateway.handle(Request(method, target, front.joined(headers), body)))

    return front.Server(exchange, host, port)


def _page(app: ParallelChalice, gateway: Gateway, method: str, content_type: str, content: bytes) -> Answer:
    if method not in ("GET", "HEAD"):
        return gateway.refuse(MethodNotAllowed(["GET", "HEAD"]), method)
    return Answer(
        200, {**app.common_headers, "X-Request-Id": str(uuid4()), "Content-Type": content_type}, content
    )


def _reply(answer: Answer) -> front.Reply:
    return answer.status, answer.headers.items(), answer.body
