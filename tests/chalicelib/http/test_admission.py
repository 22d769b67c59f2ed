"""Every route with a caller gets a repository that has the host's deadline."""

import time
from typing import Any
from uuid import uuid4

import pytest

from chalicelib.http import current_request
from chalicelib.http.current_request import Invocation
from tests.support.cognito import UserPool
from tools.client import SEED_BYTES


def authorized_routes(app: Any) -> list[tuple[str, str]]:
    return [
        (method, path)
        for path, methods in app.routes.items()
        for method, route in methods.items()
        if route.authorizer
    ]


def test_every_route_with_a_caller_keeps_the_deadline(app: Any, user_pool: UserPool) -> None:
    """With a deadline in the past, no request reaches the database."""
    from shims.gateway import Gateway, Request

    gateway = Gateway(app)
    headers = {"authorization": user_pool.token("acme"), "content-type": "application/json"}
    routes = authorized_routes(app)

    for method, path in routes:
        body = SEED_BYTES if method == "POST" else b""
        target = path.format(order_id=uuid4())
        request = Request(method, target, headers, body, deadline=time.monotonic() - 1)
        assert gateway.handle(request).status == 503, (method, path)
    assert len(routes) >= 5


@pytest.mark.parametrize("reader", [current_request.request, current_request.caller])
def test_outside_a_request_nothing_is_current(reader: Any) -> None:
    current_request.current.set(Invocation())

    with pytest.raises(RuntimeError):
        reader()


@pytest.mark.parametrize(
    "context", [None, object(), {"claims": {"sub": "alice"}}], ids=lambda context: type(context).__name__
)
def test_only_an_invocation_brings_claims(context: Any) -> None:
    assert Invocation.from_context(context) == Invocation()

    verified = Invocation(claims={"sub": "alice"})
    assert Invocation.from_context(verified) is verified
