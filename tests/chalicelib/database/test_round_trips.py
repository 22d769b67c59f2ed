"""A request costs one round trip between the API and PostgreSQL."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.extensions import parse_dsn

from chalicelib.composition import connections
from local.database import Urls
from tests.support.cognito import UserPool
from tests.support.servers import api_on
from tools.client import SEED_BYTES, Answer, Client, item, seed
from tools.postgres_proxy import Proxy

ABSENT = "01936f3c-3b5e-7cc0-98c4-dc0c0c07398f"
FIRST_CREATE = """
import os, sys
from app import app
from shims.gateway import Gateway, Request

headers = {"authorization": os.environ["TOKEN"], "content-type": "application/json"}
print(Gateway(app).handle(Request("POST", "/orders", headers, sys.stdin.buffer.read())).status)
"""


@pytest.fixture(scope="module")
def proxy(app: Any, database: Urls) -> Iterator[Proxy]:  # noqa: ARG001 (its environment)
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        tempfile.TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}"),
    ):
        yield proxy


@pytest.fixture
def warm(alice: Client, proxy: Proxy) -> Proxy:
    """The proxy, with one open connection behind it."""
    alice.get("/health/ready")
    return proxy


def get_newest(alice: Client) -> Callable[[], Answer]:
    order_id = alice.place().json["order"]["order_id"]
    return lambda: alice.get(f"/orders/{order_id}")


def get_unchanged(alice: Client) -> Callable[[], Answer]:
    order_id = alice.place().json["order"]["order_id"]
    return lambda: alice.get(f"/orders/{order_id}", if_none_match='"1"')


def next_page(alice: Client) -> Callable[[], Answer]:
    for _ in range(2):
        alice.place()
    cursor = alice.get("/orders?limit=1").json["next_cursor"]
    return lambda: alice.get(f"/orders?limit=1&cursor={cursor}")


def replay(alice: Client) -> Callable[[], Answer]:
    key = uuid4().hex
    alice.place(key=key)
    return lambda: alice.place(key=key)


def reuse_key(alice: Client) -> Callable[[], Answer]:
    key = uuid4().hex
    alice.place(key=key)
    return lambda: alice.place(seed(customer_name="Jane Doe"), key=key)


@pytest.mark.parametrize(
    ("prepare", "status", "trips"),
    [
        pytest.param(lambda alice: alice.place, 201, 1, id="create"),
        pytest.param(lambda alice: lambda: alice.place(key=uuid4().hex), 201, 1, id="create with a key"),
        pytest.param(lambda alice: lambda: alice.place(seed(items=[item()] * 500)), 201, 1, id="500 items"),
        pytest.param(get_newest, 200, 1, id="get"),
        pytest.param(get_unchanged, 304, 1, id="get with a matching ETag"),
        pytest.param(lambda alice: lambda: alice.get(f"/orders/{ABSENT}"), 404, 1, id="get an absent order"),
        pytest.param(lambda alice: lambda: alice.get("/orders"), 200, 1, id="list"),
        pytest.param(
            lambda alice: lambda: alice.get("/orders?offset=7&limit=3"), 200, 1, id="list by offset"
        ),
        pytest.param(next_page, 200, 1, id="list by cursor"),
        pytest.param(lambda alice: lambda: alice.get("/orders?my_orders=true"), 200, 1, id="my orders"),
        pytest.param(replay, 201, 2, id="replay"),
        pytest.param(reuse_key, 422, 2, id="another order with the same key"),
        pytest.param(lambda alice: lambda: alice.place({}), 422, 0, id="invalid order"),
        pytest.param(lambda alice: lambda: alice.get("/orders/1"), 404, 0, id="malformed id"),
        pytest.param(lambda alice: lambda: alice.get("/health"), 200, 0, id="health"),
    ],
)
def test_round_trips_per_request_on_a_warm_connection(
    alice: Client,
    warm: Proxy,
    prepare: Callable[[Client], Callable[[], Answer]],
    status: int,
    trips: int,
) -> None:
    request = prepare(alice)

    with warm.watched() as traffic:
        answer = request()

    assert answer.status == status, answer.body
    assert (traffic.trips, traffic.messages) == (trips, ["Q"] * trips)
    assert all(
        without_prepare(statement).startswith("select set_tenant('") for statement in traffic.statements
    )


def without_prepare(string: str) -> str:
    """A query string without its leading PREPARE statements."""
    return re.sub(r"\A(prepare order_api_\w+ as .+?;\n)*", "", string, flags=re.DOTALL)


def test_first_create_takes_connecting_plus_one_round_trip(
    proxy: Proxy, user_pool: UserPool, tenant: str
) -> None:
    """Connecting is one trip: startup and its answer. TLS and a password would add more."""
    environment = {**os.environ, "TOKEN": user_pool.token(tenant)}

    with proxy.watched() as traffic:
        first = subprocess.run(
            [sys.executable, "-c", FIRST_CREATE],
            input=SEED_BYTES,
            env=environment,
            cwd=Path(__file__).parents[3],
            capture_output=True,
            check=False,
        )

    # The request log is written before this line.
    assert first.stdout.splitlines()[-1:] == [b"201"], first.stderr
    assert traffic.trips == 2
    assert [kind for kind in traffic.messages if kind != "X"] == ["startup", "Q"]


def test_requests_send_no_transaction_commands(alice: Client, warm: Proxy) -> None:
    with warm.watched() as traffic:
        order_id = alice.place(key=uuid4().hex).json["order"]["order_id"]
        alice.get(f"/orders/{order_id}")
        alice.get("/orders")

    commands = [line.split()[0].lower() for string in traffic.statements for line in string.split(";\n")]
    assert set(commands) <= {"prepare", "select", "execute"}
    assert len(traffic.statements) == 3


def test_statements_name_only_the_callers_tenant(
    alice: Client, other_tenant: Client, warm: Proxy, tenant: str
) -> None:
    with warm.watched() as traffic:
        alice.get("/orders")
        other_tenant.get("/orders")

    own, foreign = traffic.statements
    assert without_prepare(own).startswith(f"select set_tenant('{tenant}');\n")
    assert tenant not in foreign


def test_connection_keeps_no_state_except_prepared_statements(alice: Client, warm: Proxy) -> None:
    key = uuid4().hex
    for answer in (alice.place(key=key), alice.place(key=key), alice.get("/orders")):
        assert answer.status in (200, 201)

    with warm.watched() as traffic:
        connection = connections().pool.take()
        with connection.driver.cursor() as cursor:
            cursor.execute(
                "select coalesce(current_setting('app.tenant_id', true), ''),"
                " (select count(*) from pg_settings where source = 'session'),"
                " (select count(*) from pg_prepared_statements where name not like 'order\\_api\\_%'),"
                " (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory')"
            )
            state = cursor.fetchone()
        connections().pool.give_back(connection)

    assert state == ("", 0, 0, 0)
    assert traffic.messages == ["Q"], "it was the pooled connection, outside a transaction"
