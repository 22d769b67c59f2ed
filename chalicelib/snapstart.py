"""Lambda SnapStart: what happens before the snapshot of a version is taken, and after each restore from it.

A snapshot is the memory of this process, made once when a version is published and woken up in as many
instances, and as late, as Lambda likes (https://docs.aws.amazon.com/lambda/latest/dg/snapstart.html). What a
first request needs is in it. What ages is not: no connection, no password. What must be unique is renewed.
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

from chalicelib import rate_limit as rates
from chalicelib.database import tenant_scope as database
from chalicelib.observability import record as telemetry
from chalicelib.orders.statements import (
    INSERT_ITEMS,
    INSERT_KEY,
    INSERT_ORDER,
    ORDER_BY_ID,
    ORDER_BY_KEY,
    ORDERS_PAGES,
    TAKE_TURN,
)

Handler = Callable[[Any, Any], Mapping[str, Any]]
"""The function as Lambda calls it: an event and a context to a proxy result."""
Event = dict[str, Any]

REHEARSAL = "rehearsal"
"""The id of its requests."""
LONGEST_CONNECT = 7
"""Seconds; Lambda gives up a restore whose hooks take more than ten."""
STATEMENTS = (INSERT_ORDER, INSERT_ITEMS, ORDER_BY_ID, INSERT_KEY, ORDER_BY_KEY, *ORDERS_PAGES.values())
REFUSED_ORDER = {
    "customer_name": "Rehearsal",
    "customer_email": "rehearsal@example.com",
    "total_amount": 99.99,
    "currency": "JPY",
    "items": [
        {"product_name": "Rehearsal", "product_sku": "REHEARSAL-1", "quantity": 1, "unit_price": 99.99}
    ],
}
"""Passes every rule but the last, and is never placed: there are no 0.99 yen."""

_log = logging.getLogger("order-api")


def register(handler: Handler) -> None:
    """Have Lambda's runtime call the hooks. It brings the package; a zip need not."""
    from snapshot_restore_py import (  # type: ignore[import-not-found]
        register_after_restore,
        register_before_snapshot,
    )

    register_before_snapshot(before_snapshot, handler)
    register_after_restore(after_restore)


def before_snapshot(handler: Handler) -> None:
    """Answer requests that change nothing, which loads what a first one needs; then let go of what ages.

    Without a database the version is published all the same: an error here would fail its publication.
    """
    telemetry.begin(REHEARSAL, "aws")  # and never ended: it is nobody's request, and no figure
    for event in _rehearsal():
        event["requestContext"]["rehearsal"] = True  # for app.admitted_caller: it takes no turn
        status = handler(event, None)["statusCode"]
        if status >= 500:
            _log.error("SnapStart: the rehearsal ended with %s, the snapshot is taken all the same", status)
            break
    database.close_pool()


def after_restore() -> None:
    """Be like no other instance of this snapshot, and ready: a connection with every statement prepared.

    Without a database the restore succeeds all the same, and requests say 503 until there is one.
    """
    _renew_randomness()
    telemetry.start_anew()
    connecting = threading.Thread(target=_connect, daemon=True)
    connecting.start()
    connecting.join(LONGEST_CONNECT)
    if connecting.is_alive():
        _log.error("SnapStart: restored without a connection, there is none after %s s", LONGEST_CONNECT)


def _renew_randomness() -> None:
    """Generators whose state is memory: each instance would go on with the same order ids and TLS keys.

    Order ids have one in uuid_utils, one for each thread. OpenSSL notices a fork by the process id, and a
    restored instance has the old one: psycopg2's wheel brings its own OpenSSL, Python has another.
    """
    reseed_rng()
    ctypes.CDLL(_psycopg.__file__).RAND_poll()
    ssl.RAND_add(os.urandom(32), 32)
    random.seed()


def _connect() -> None:
    try:
        database.prepare((*STATEMENTS, TAKE_TURN) if rates.rate() else STATEMENTS)
    except Exception as error:
        _log.error("SnapStart: restored without a connection, the next request opens one: %r", error)


def _rehearsal() -> Iterator[Event]:
    """A refused order, an empty page, an order that is not there, all of a tenant that nobody has."""
    claims = {"custom:tenant_id": f"rehearsal-{uuid4()}", "sub": "rehearsal"}
    nobodys = {"order_id": str(UUID(int=0))}
    yield _event("POST", "/orders", claims, body=json.dumps(REFUSED_ORDER))
    yield _event("GET", "/orders", claims, multiValueQueryStringParameters={"limit": ["1"]})
    yield _event("GET", "/orders/{order_id}", claims, pathParameters=nobodys)


def _event(method: str, resource: str, claims: Mapping[str, str], **more: Any) -> Event:
    """What API Gateway would send, as far as it is read."""
    return {
        "httpMethod": method,
        "path": resource.format(**more.get("pathParameters", {})),
        "pathParameters": None,
        "headers": {"Content-Type": "application/json"},
        "multiValueQueryStringParameters": None,
        "stageVariables": None,
        "requestContext": {
            "resourcePath": resource,
            "httpMethod": method,
            "requestId": REHEARSAL,
            "authorizer": {"claims": claims},
        },
        "body": None,
        "isBase64Encoded": False,
        **more,
    }
