"""Query plans of the API's statements, for a tenant with nearly all orders and for one with three.

The statements are captured at the socket, with and without DB_PREPARE, and explained as the API's role.
Prepared statements are explained with their generic plan, which a session may keep until it ends.
"""

import json
import tempfile
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from migrations.migrate import migrate
from tests.conftest import NewClient
from tests.support.cognito import UserPool
from tests.support.servers import api_on
from tools.client import Answer, Client
from tools.postgres_proxy import Proxy
from tools.postgres_server import connected

HUGE, TINY = "huge-shop", "tiny-shop"
REGULAR, BULK = "regular", "bulk"
"""A user with few orders, and one with half of the huge tenant's."""
ORDER_ID = "01936f3c-3b5e-7cc0-98c4-dc0c0c07398f"
HUGE_ORDERS, TINY_ORDERS = 4_000, 3
LIMIT, OFFSET = 10, 100
SEPARATOR = ";\n"
"""Between the statements of a query string."""
BY_CREATOR = "orders_created_by_idx"
BLOCKS_PER_ORDER = 12
"""8 KiB pages per order and its items: the levels of two indexes, the rows, and a margin."""
INSERTS = (
    """
    insert into orders
        select shop, uuidv7(- minutes * interval '1 minute'), who, 'pending', 1, 'J', 'j@x', null, null, null,
               1, 'USD', now(), now()
        from (
            select n, %(huge)s, case when n %% 2 = 0 then %(bulk)s when n %% 1000 = 1 then %(regular)s
                                     else 'user-' || n %% 700 end
                from generate_series(1, %(of_the_huge)s) n
            union all select n, %(tiny)s, %(regular_of_tiny)s from generate_series(1, %(of_the_tiny)s) n
            union all select n, 'shop-' || n %% %(shops)s, 'user-' || n %% 7
                from generate_series(1, %(shops)s * %(orders_each)s) n
        ) placed (minutes, shop, who)
        order by minutes desc
    """,
    """
    insert into order_items
        select tenant_id, order_id, line_no, 'W', 'S', 1, 1 from orders, generate_series(1, 2) line_no
    """,
    """
    insert into idempotency_keys
        select tenant_id, created_by, order_id::text, repeat('0', 64), order_id, created_at from orders
    """,
)
NEW_ORDER = f"""
insert into orders values ('{HUGE}', '{ORDER_ID}', 'user-1', 'pending', 1, 'J', 'j@x', null, null, null,
                           1, 'USD', now(), now());
insert into order_items values ('{HUGE}', '{ORDER_ID}', 1, 'W', 'S', 1, 1)
"""


@dataclass(frozen=True)
class Population:
    """How many other tenants there are, and their orders."""

    shops: int
    orders_each: int


@dataclass(frozen=True)
class Case:
    """A request, the index that finds its orders, and how many orders it may read."""

    send: Callable[[Client], Answer]
    index: str = "orders_pkey"
    orders: int = LIMIT + 1
    other_indexes: tuple[str, ...] = ()
    """Indexes used beside those of orders and items."""


def get_newest(client: Client) -> Answer:
    (order,) = client.get("/orders?limit=1").json["orders"]
    return client.get(f"/orders/{order['order_id']}")


def list_page(query: str) -> Callable[[Client], Answer]:
    return lambda client: client.get(f"/orders?limit={LIMIT}&{query}")


def second_page(query: str) -> Callable[[Client], Answer]:
    def send(client: Client) -> Answer:
        cursor = client.get(f"/orders?limit=1&{query}").json["next_cursor"]
        return client.get(f"/orders?limit={LIMIT}&cursor={cursor}&{query}")

    return send


def replay(client: Client) -> Answer:
    key = uuid4().hex
    client.place(key=key)
    return client.place(key=key)


POPULATIONS = {
    "among shops with four orders": Population(2_000, 4),
    "among shops with one order": Population(16_000, 1),
    "alone": Population(1, 0),
}
CASES = {
    "get": Case(get_newest, orders=1),
    "replay": Case(replay, orders=1, other_indexes=("idempotency_keys_pkey",)),
    "first page": Case(list_page("")),
    "by cursor": Case(second_page("")),
    "by offset": Case(list_page(f"offset={OFFSET}"), orders=OFFSET + LIMIT + 1),
    "my orders": Case(list_page("my_orders=true"), BY_CREATOR),
    "my orders by cursor": Case(second_page("my_orders=true"), BY_CREATOR),
    "my orders by offset": Case(list_page(f"my_orders=true&offset={OFFSET}"), BY_CREATOR, OFFSET + LIMIT + 1),
}


@pytest.fixture(scope="module", params=POPULATIONS)
def populated_url(request: pytest.FixtureRequest, admin_url: str, user_pool: UserPool) -> Iterator[str]:
    """A database with the two tenants among others; yields its superuser URL."""
    name = f"plans_{uuid4().hex[:8]}"
    url = make_dsn(admin_url, dbname=name)
    with connected(admin_url) as connection, connection.cursor() as cursor:
        cursor.execute(f"create database {name} owner orders_owner")
        try:
            migrate(make_dsn(url, user="orders_owner"))
            fill(url, user_pool, POPULATIONS[request.param])
            yield url
        finally:
            cursor.execute(f"drop database {name} with (force)")


def fill(url: str, user_pool: UserPool, others: Population) -> None:
    values = {
        "huge": HUGE,
        "bulk": user_id(user_pool, HUGE, BULK),
        "regular": user_id(user_pool, HUGE, REGULAR),
        "of_the_huge": HUGE_ORDERS,
        "tiny": TINY,
        "regular_of_tiny": user_id(user_pool, TINY, REGULAR),
        "of_the_tiny": TINY_ORDERS,
        "shops": others.shops,
        "orders_each": others.orders_each,
    }
    with connected(url) as connection, connection.cursor() as cursor:
        for insert in INSERTS:
            cursor.execute(insert, values)
        cursor.execute("vacuum analyze")


def user_id(user_pool: UserPool, tenant: str, user: str) -> str:
    """The `sub` of the user's token."""
    payload = user_pool.token(tenant, user).split(".")[1]
    return str(json.loads(urlsafe_b64decode(payload + "=="))["sub"])


@pytest.fixture(scope="module")
def proxy(admin_url: str) -> Iterator[Proxy]:
    sockets = Path(parse_dsn(admin_url)["host"])
    with (
        tempfile.TemporaryDirectory(prefix="order-api-plans-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
    ):
        yield proxy


@pytest.mark.parametrize("prepare", ["on", "off"])
@pytest.mark.parametrize("caller", [(HUGE, BULK), (HUGE, REGULAR), (TINY, REGULAR)], ids=" ".join)
@pytest.mark.parametrize("case_name", CASES)
def test_requests_use_their_index_and_few_blocks(
    populated_url: str, proxy: Proxy, client: NewClient, caller: tuple[str, str], case_name: str, prepare: str
) -> None:
    case = CASES[case_name]

    plan = explain_last(
        populated_url, capture_statements(case.send, client(*caller), populated_url, proxy, prepare)
    )

    index_nodes = [node for node in plan if "Index Name" in node]
    assert all("tenant_id" in node["Index Cond"] for node in index_nodes)
    if caller[0] == HUGE:  # with three orders the planner may choose any index
        assert {node["Index Name"] for node in index_nodes} == {
            case.index,
            "order_items_pkey",
            *case.other_indexes,
        }
    assert "Seq Scan" not in {node["Node Type"] for node in plan}
    # Also bounds sorting: sorted rows are counted here as read.
    assert sum(rows_read(node) for node in plan if node.get("Relation Name") == "orders") <= case.orders
    blocks = plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"]
    assert blocks <= BLOCKS_PER_ORDER * (case.orders + len(case.other_indexes))
    assert "app.tenant_id" in json.dumps(plan[0]), "the plan must contain the row-level security filter"


def test_foreign_key_check_uses_the_primary_key(populated_url: str) -> None:
    """PostgreSQL prepares the foreign key's query, and soon uses its generic plan."""
    with api_cursor(populated_url) as cursor:
        cursor.execute(f"begin; select set_tenant('{HUGE}'); {NEW_ORDER}")

        cursor.execute(
            "select pg_stat_get_xact_numscans('orders_pkey'::regclass),"
            " pg_stat_get_xact_numscans('orders_created_by_idx'::regclass)"
        )

        assert cursor.fetchall() == [(1, 0)]
        cursor.execute("rollback")


def capture_statements(
    send: Callable[[Client], Answer], client: Client, populated_url: str, proxy: Proxy, prepare: str
) -> list[str]:
    """Sends a request; returns the query strings that reached PostgreSQL."""
    through_the_proxy = make_dsn(populated_url, user="orders_app", host=str(proxy.folder))
    with api_on(through_the_proxy, DB_PREPARE=prepare), proxy.watched() as traffic:
        answer = send(client)
    assert answer.status in (200, 201), answer.body
    return traffic.statements


@contextmanager
def api_cursor(populated_url: str) -> Iterator[Any]:
    """A cursor of the API's role, with generic plans for prepared statements."""
    with connected(make_dsn(populated_url, user="orders_app")) as connection, connection.cursor() as cursor:
        cursor.execute("set plan_cache_mode = force_generic_plan")
        yield cursor


def explain_last(populated_url: str, sent: list[str]) -> list[dict[str, Any]]:
    """Runs the last statement with EXPLAIN ANALYZE; returns all plan nodes, the root first."""
    *before, last = for_new_session(sent).split(SEPARATOR)
    with api_cursor(populated_url) as cursor:
        cursor.execute(SEPARATOR.join([*before, f"explain (analyze, buffers, format json) {last}"]))
        ((result,),) = cursor.fetchall()
    nodes = [result[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    return nodes


def for_new_session(sent: list[str]) -> str:
    """The last query string, with the PREPAREs that a new session needs."""
    prepared = [part for string in sent for part in string.split(SEPARATOR) if part.startswith("prepare ")]
    others = [part for part in sent[-1].split(SEPARATOR) if part not in prepared]
    return SEPARATOR.join([*prepared, *others])


def rows_read(node: dict[str, Any]) -> int:
    removed = sum(rows for name, rows in node.items() if name.startswith("Rows Removed"))
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])
