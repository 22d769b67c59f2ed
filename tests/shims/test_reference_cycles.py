"""A request leaves nothing for the cyclic garbage collector: its body and claims are freed at once."""

import gc
from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.errors import MalformedRequest
from shims.gateway import Gateway
from tests.conftest import NewClient
from tools.client import Client

Send = Callable[[Client, Gateway], object]


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda alice, _: alice.place(), id="create"),
        pytest.param(lambda alice, _: alice.get("/orders"), id="list"),
        pytest.param(lambda alice, _: alice.get("/orders/absent"), id="404"),
        pytest.param(lambda alice, _: alice.send("PUT", "/orders"), id="405"),
        pytest.param(lambda alice, _: alice.place(raw=b"{"), id="400"),
        pytest.param(lambda _, gateway: gateway.refuse(MalformedRequest(), "GET"), id="refused"),
    ],
)
def test_request_leaves_no_reference_cycle(client: NewClient, app: Any, send: Send) -> None:
    alice, gateway = client(), Gateway(app)
    send(alice, gateway)  # imports, caches, prepared statements
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            send(alice, gateway)
        unreachable = gc.collect()
    finally:
        gc.enable()

    assert unreachable < 20
