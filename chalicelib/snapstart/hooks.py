"""Hooks of Lambda SnapStart: one before the snapshot of a version is taken, one after each restore from it.

A snapshot is the memory of this process, taken once when a version is published. Lambda restores any number
of instances from it, at any time (https://docs.aws.amazon.com/lambda/latest/dg/snapstart.html). The snapshot
has what a first request needs, already loaded. It has nothing that expires: no connection, no password.
Random generators are seeded again in each instance.
"""

import ctypes
import json
import logging
import os
import random
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

from psycopg2 import _psycopg
from uuid_utils import reseed_rng

from chalicelib import composition
from chalicelib.database.statement import Statement
from chalicelib.http.current_request import Invocation
from chalicelib.observability import request_log
from chalicelib.orders.statements import (
    INSERT_ITEMS,
    INSERT_KEY,
    INSERT_ORDER,
    ORDER_BY_ID,
    ORDER_BY_KEY,
    ORDERS_PAGES,
)
from chalicelib.rate_limit import TAKE_TURN

Handler = Callable[[Any, Any], Mapping[str, Any]]
"""The function as Lambda calls it: an event and a context to a proxy result."""
Event = dict[str, Any]

WARM_UP = "warm-up"
"""The request id of the warm-up's requests."""
CONNECT_TIMEOUT = 7
"""Seconds; Lambda fails a restore whose hooks take more than ten."""
STATEMENTS: tuple[Statement[Any], ...] = (
    INSERT_ORDER,
    INSERT_ITEMS,
    ORDER_BY_ID,
    INSERT_KEY,
    ORDER_BY_KEY,
    *ORDERS_PAGES.values(),
)
INVALID_ORDER = {
    "customer_name": "Warm-up",
    "customer_email": "warm-up@example.com",
    "total_amount": 99.99,
    "currency": "JPY",
    "items": [{"product_name": "Warm-up", "product_sku": "WARM-UP-1", "quantity": 1, "unit_price": 99.99}],
}
"""Passes every check but the last, and is never placed: there are no 0.99 yen."""

_log = logging.getLogger("order-api")


def register(handler: Handler) -> None:
    """Have Lambda's runtime call the hooks. The package is part of the runtime, not of the zip."""
    from snapshot_restore_py import (  # type: ignore[import-not-found] # only on Lambda
        register_after_restore,
        register_before_snapshot,
    )

    register_before_snapshot(before_snapshot, handler)
    register_after_restore(after_restore)


def before_snapshot(handler: Handler) -> None:
    """Handle read-only requests, so that lazy imports and caches are loaded; then close the connections.

    Never raises: without a database the version is published too.
    """
    record = request_log.open_record(WARM_UP, "aws")  # never closed: no log line and no metric
    for request in _warm_up_events():
        record.describe(request["httpMethod"], request["requestContext"]["resourcePath"], None)
        status = handler(request, Invocation(record=record, counts=False))["statusCode"]
        if status >= 500:
            _log.error("SnapStart: the warm-up ended with %s, the snapshot is taken all the same", status)
            break
    composition.close()


def after_restore() -> None:
    """Seed this instance's random generators, and open a connection with every statement prepared.

    Never raises: without a database the restore succeeds, and requests get 503 until there is one.
    """
    _seed_generators()
    request_log.reset()
    connecting = threading.Thread(target=_connect, daemon=True)
    connecting.start()
    connecting.join(CONNECT_TIMEOUT)
    if connecting.is_alive():
        _log.error("SnapStart: restored without a connection, there is none after %s s", CONNECT_TIMEOUT)


def _seed_generators() -> None:
    """Seed the generators with state in memory: instances would repeat each other's order ids and TLS keys.

    uuid_utils has one per thread. OpenSSL detects a fork by the process id, which a restored instance shares
    with the snapshot. psycopg2's wheel has an OpenSSL of its own beside Python's.
    """
    reseed_rng()
    ctypes.CDLL(_psycopg.__file__).RAND_poll()
    ssl.RAND_add(os.urandom(32), 32)
    random.seed()


def _connect() -> None:
    try:
        is_limited = composition.rate_limiter().rate is not None
        composition.connections().prepare((*STATEMENTS, TAKE_TURN) if is_limited else STATEMENTS)
    except Exception as error:
        _log.error("SnapStart: restored without a connection, the next request opens one: %r", error)


def _warm_up_events() -> Iterator[Event]:
    """An invalid order, an empty page and an absent order, all of a tenant that does not exist."""
    claims = {"custom:tenant_id": f"{WARM_UP}-{uuid4()}", "sub": WARM_UP}
    yield event("POST", "/orders", claims, body=json.dumps(INVALID_ORDER))
    yield event("GET", "/orders", claims, multiValueQueryStringParameters={"limit": ["1"]})
    yield event("GET", "/orders/{order_id}", claims, pathParameters={"order_id": str(UUID(int=0))})


def event(method: str, resource: str, claims: Mapping[str, str], **members: Any) -> Event:
    """API Gateway's event, with the members that the app reads."""
    return {
        "httpMethod": method,
        "path": resource.format(**members.get("pathParameters", {})),
        "pathParameters": None,
        "headers": {"Content-Type": "application/json"},
        "multiValueQueryStringParameters": None,
        "stageVariables": None,
        "requestContext": {
            "resourcePath": resource,
            "httpMethod": method,
            "requestId": WARM_UP,
            "authorizer": {"claims": claims},
        },
        "body": None,
        "isBase64Encoded": False,
        **members,
    }
