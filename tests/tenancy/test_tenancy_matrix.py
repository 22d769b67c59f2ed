"""Every route, for every kind of caller and every way to name another tenant: no access across tenants."""

import json
from itertools import product
from typing import Any
from uuid import uuid4

import pytest

from chalicelib.orders.statements import ORDER_BY_ID
from local.database import Urls
from tests.support.cognito import UserPool, signed
from tests.support.cross_tenant_requests import MALFORMED_IDS, WAYS, WAYS_AT_ONCE, Way
from tests.support.servers import limited
from tests.support.tenancy_rule import Rows, Scene, operations
from tests.support.tenancy_rule import request as build_request
from tests.support.tenants import claims, create_tenant, requesters
from tools.client import Answer, Client, Transport
from tools.postgres_server import connected

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(app: Any, user_pool: UserPool, rows: Rows, in_process: Transport) -> Scene:
    document = in_process("GET", "/openapi.json", {}, b"").json
    return Scene(app, document, user_pool, rows, baseline=in_process)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_naming_another_tenant_has_no_effect(way: Way, scene: Scene, in_process: Transport) -> None:
    assert scene.cross_tenant_requests(way, in_process) == []


def test_key_used_by_others_replays_ones_own_order(
    scene: Scene, in_process: Transport, http: Transport
) -> None:
    assert scene.replays(in_process) == []
    assert scene.replays(http) == []


def test_request_naming_another_tenant_uses_its_own_limit(
    scene: Scene, in_process: Transport, database: Urls, rows: Rows
) -> None:
    victim, other = create_tenant(in_process, scene.pool), create_tenant(in_process, scene.pool)
    outsider = requesters(scene.pool, victim, other)[2]
    protected = [operation for operation in operations(scene.app, scene.document) if operation.protected]

    with limited(database.app, "1000/h"):
        for operation, way in product(protected, WAYS_AT_ONCE):
            if way.fits(operation.template):
                build_request(operation, outsider, way, victim, other).send_through(in_process)

    counted_tenants = "select tenant_id from rate_limits where tenant_id in (%s, %s)"
    assert rows(counted_tenants, victim.tenant, other.tenant) == [(other.tenant,)]


# Existence of an order


@pytest.mark.parametrize("transport", ["in_process", "http"])
@pytest.mark.parametrize("headers", [{}, {"if-none-match": '"1"'}, {"if-none-match": "*"}], ids=str)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_foreign_absent_and_malformed_ids_get_identical_responses(
    method: str, headers: dict[str, str], transport: str, scene: Scene, request: pytest.FixtureRequest
) -> None:
    send: Transport = request.getfixturevalue(transport)
    victim, other = create_tenant(send, scene.pool), create_tenant(send, scene.pool)
    outsider = Client(send, signed(claims(scene.pool, other.tenant, other.user)))
    malformed = [malform(victim) for malform in MALFORMED_IDS.values()]

    answers = [
        outsider.send(method, f"/orders/{order_id}", headers=headers)
        for order_id in (victim.order_id, adjacent_id(victim.order_id), str(uuid4()), *malformed)
    ]

    assert {answer.status for answer in answers} == {404}
    assert len({comparable_text(answer) for answer in answers}) == 1


def comparable_text(answer: Answer) -> str:
    """An answer without the request id and the date, which always differ."""
    request_id = answer.headers["x-request-id"]
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}
    return json.dumps(headers) + answer.body.decode().replace(request_id, "")


def adjacent_id(order_id: str) -> str:
    """An id that differs in the last digit."""
    return order_id[:-1] + ("1" if order_id[-1] == "0" else "0")


def test_foreign_and_absent_ids_have_equal_query_cost(
    scene: Scene, in_process: Transport, database: Urls
) -> None:
    """No timing side channel: the same plan and pages, and no row that is read and filtered out."""
    victim, other = create_tenant(in_process, scene.pool), create_tenant(in_process, scene.pool)

    def executed_plan(order_id: str) -> Any:
        with connected(database.app) as connection, connection.cursor() as cursor:
            values = {"tenant_id": other.tenant, "order_id": order_id}
            cursor.execute("begin; select set_tenant(%(tenant_id)s)", values)
            cursor.execute(ORDER_BY_ID.text, values)  # warms the caches
            explain = "explain (analyze, buffers, timing off, summary off, costs off) "
            cursor.execute(explain + ORDER_BY_ID.text, values)
            return [line.replace(order_id, "") for (line,) in cursor.fetchall() if "Planning" not in line]

    foreign, absent = executed_plan(victim.order_id), executed_plan(adjacent_id(victim.order_id))

    assert foreign == absent
    assert "Removed" not in "".join(foreign)
    assert executed_plan(other.order_id) != absent
