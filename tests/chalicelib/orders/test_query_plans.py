"""How PostgreSQL runs what the API really sends, in a shop with nearly all orders and in one with three.

The strings are caught at the socket, with and without DB_PREPARE, and explained as the API's role. Of a
prepared statement it is the plan without its values that is looked at, which a session may keep for good.
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

from local.database import apply_schema
from tests.conftest import NewClient
from tests.support.cognito import UserPool
from tests.support.servers import api_on
from tools.client import Answer, Client
from tools.postgres_proxy import Proxy
from tools.postgres_server import connected

HUGE, TINY = "huge-shop", "tiny-shop"
REGULAR, BULK = "regular", "bulk"
"""A user with few orders, and one with half of the huge shop's."""
ORDER_ID = "01936f3c-3b5e-7cc0-98c4-dc0c0c07398f"
OF_THE_HUGE, OF_THE_TINY = 4_000, 3
LIMIT, FAR = 10, 100
SEPARATOR = ";\n"
"""Between the statements of a string."""
MINE = "orders_created_by_idx"
BLOCKS = 12
"""Pages of 8 KiB for an order and its items: the levels of two indexes, the rows, and some to spare."""
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
    """The other shops."""

    shops: int
    orders_each: int


@dataclass(frozen=True)
class Question:
    """What is asked, which index finds its orders, and how many of them may be read."""

    ask: Callable[[Client], Answer]
    index: str = "orders_pkey"
    orders: int = LIMIT + 1
    others: tuple[str, ...] = ()
    """Indexes that it needs beside those of orders and items."""


def newest(client: Client) -> Answer:
    (order,) = client.get("/orders?limit=1").json["orders"]
    return client.get(f"/orders/{order['order_id']}")


def listed(query: str) -> Callable[[Client], Answer]:
    return lambda client: client.get(f"/orders?limit={LIMIT}&{query}")


def after_the_first(query: str) -> Callable[[Client], Answer]:
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
QUESTIONS = {
    "get": Question(newest, orders=1),
    "replay": Question(replay, orders=1, others=("idempotency_keys_pkey",)),
    "first page": Question(listed("")),
    "by cursor": Question(after_the_first("")),
    "by offset": Question(listed(f"offset={FAR}"), orders=FAR + LIMIT + 1),
    "my orders": Question(listed("my_orders=true"), MINE),
    "my orders by cursor": Question(after_the_first("my_orders=true"), MINE),
    "my orders by offset": Question(listed(f"my_orders=true&offset={FAR}"), MINE, FAR + LIMIT + 1),
}


@pytest.fixture(scope="module", params=POPULATIONS)
def shops(request: pytest.FixtureRequest, admin_url: str, user_pool: UserPool) -> Iterator[str]:
    """A database with the two shops among others, as its superuser."""
    name = f"plans_{uuid4().hex[:8]}"
    url = make_dsn(admin_url, dbname=name)
    with connected(admin_url) as connection, connection.cursor() as cursor:
        cursor.execute(f"create database {name} owner orders_owner")
        try:
            apply_schema(make_dsn(url, user="orders_owner"))
            fill(url, user_pool, POPULATIONS[request.param])
            yield url
        finally:
            cursor.execute(f"drop database {name} with (force)")


def fill(url: str, user_pool: UserPool, others: Population) -> None:
    values = {
        "huge": HUGE,
        "bulk": user_id(user_pool, HUGE, BULK),
        "regular": user_id(user_pool, HUGE, REGULAR),
        "of_the_huge": OF_THE_HUGE,
        "tiny": TINY,
        "regular_of_tiny": user_id(user_pool, TINY, REGULAR),
        "of_the_tiny": OF_THE_TINY,
        "shops": others.shops,
        "orders_each": others.orders_each,
    }
    with connected(url) as connection, connection.cursor() as cursor:
        for insert in INSERTS:
            cursor.execute(insert, values)
        cursor.execute("vacuum analyze")


def user_id(user_pool: UserPool, tenant: str, user: str) -> str:
    """The `sub` of that user's token."""
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
@pytest.mark.parametrize("question", QUESTIONS)
def test_requests_use_their_index_and_few_blocks(
    shops: str, proxy: Proxy, client: NewClient, caller: tuple[str, str], question: str, prepare: str
) -> None:
    asked = QUESTIONS[question]

    plan = explained(shops, caught(asked.ask, client(*caller), shops, proxy, prepare))

    by_index = [node for node in plan if "Index Name" in node]
    assert all("tenant_id" in node["Index Cond"] for node in by_index)
    if caller[0] == HUGE:  # three orders are found by any index
        assert {node["Index Name"] for node in by_index} == {asked.index, "order_items_pkey", *asked.others}
    assert "Seq Scan" not in {node["Node Type"] for node in plan}
    # Also all that can be sorted: whatever is sorted was read here.
    assert sum(rows_read(node) for node in plan if node.get("Relation Name") == "orders") <= asked.orders
    blocks = plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"]
    assert blocks <= BLOCKS * (asked.orders + len(asked.others))
    assert "app.tenant_id" in json.dumps(plan[0]), "row-level security is on"


def test_foreign_key_check_uses_the_primary_key(shops: str) -> None:
    """The foreign key's own query is always prepared, and soon planned without its values."""
    with as_the_api(shops) as cursor:
        cursor.execute(f"begin; select set_tenant('{HUGE}'); {NEW_ORDER}")

        cursor.execute(
            "select pg_stat_get_xact_numscans('orders_pkey'::regclass),"
            " pg_stat_get_xact_numscans('orders_created_by_idx'::regclass)"
        )

        assert cursor.fetchall() == [(1, 0)]
        cursor.execute("rollback")


def caught(
    ask: Callable[[Client], Answer], client: Client, shops: str, proxy: Proxy, prepare: str
) -> list[str]:
    """The strings that the API sent to PostgreSQL."""
    through_the_proxy = make_dsn(shops, user="orders_app", host=str(proxy.folder))
    with api_on(through_the_proxy, DB_PREPARE=prepare), proxy.watched() as traffic:
        answer = ask(client)
    assert answer.status in (200, 201), answer.body
    return traffic.statements


@contextmanager
def as_the_api(shops: str) -> Iterator[Any]:
    """A cursor for which prepared statements are planned without their values."""
    with connected(make_dsn(shops, user="orders_app")) as connection, connection.cursor() as cursor:
        cursor.execute("set plan_cache_mode = force_generic_plan")
        yield cursor


def explained(shops: str, sent: list[str]) -> list[dict[str, Any]]:
    """All nodes of the plan of what was sent last, the root first, with what they really did."""
    *before, last = again(sent).split(SEPARATOR)
    with as_the_api(shops) as cursor:
        cursor.execute(SEPARATOR.join([*before, f"explain (analyze, buffers, format json) {last}"]))
        ((found,),) = cursor.fetchall()
    nodes = [found[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    return nodes


def again(sent: list[str]) -> str:
    """The last string, for a session that has prepared nothing yet."""
    prepared = [part for string in sent for part in string.split(SEPARATOR) if part.startswith("prepare ")]
    rest = [part for part in sent[-1].split(SEPARATOR) if part not in prepared]
    return SEPARATOR.join([*prepared, *rest])


def rows_read(node: dict[str, Any]) -> int:
    removed = sum(rows for name, rows in node.items() if name.startswith("Rows Removed"))
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])
