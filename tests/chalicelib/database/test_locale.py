"""A version of glibc that sorts text differently, under the same data: no order is lost or placed twice."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import psycopg2
import pytest

from migrations.migrate import migrate
from tests.support.cognito import UserPool, signed
from tests.support.locales import LOCALE, Locales, compiled_locales
from tests.support.release_1 import apply_release_1
from tests.support.servers import api_on, private_server
from tests.support.tenants import claims
from tools.client import Client, Transport
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

TENANTS = ["".join(parts) for parts in product(("shop", "Shop"), ("", "-"), ("1", "b"))]
USERS = ["al9", "al-9", "alb"]
KEYS = ["".join(parts) for parts in product(("cart", "Cart"), ("", "-"), ("2", "a", "B"))]
COUNT_IN_HEAP = """
    set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off;
    select count(*) from orders"""
INDEXES = """
    select indexrelid::regclass::text from pg_index join pg_class on pg_class.oid = indrelid
    where relnamespace = 'public'::regnamespace"""


class Damage(NamedTuple):
    """What a change of the locale did to the orders that were placed before it."""

    lost: int
    """Orders that are not found by id, in the tenant's list or in the user's."""
    not_replayed: int
    """Orders that a retry with their Idempotency-Key does not answer."""
    doubled: int
    """Orders that the retries stored."""
    broken_indexes: int
    """Indexes that amcheck refuses after the change, before the retries."""


@pytest.fixture(scope="module")
def locales() -> Iterator[Locales]:
    with compiled_locales() as locales:
        yield locales


@pytest.fixture
def server(locales: Locales) -> Iterator[Server]:
    with private_server(environment={"LOCPATH": str(locales.original), "LC_ALL": LOCALE}) as server:
        yield server


@pytest.fixture
def buyers(in_process: Transport, user_pool: UserPool) -> list[Client]:
    tokens = [signed(claims(user_pool, tenant, user)) for tenant, user in product(TENANTS, USERS)]
    return [Client(in_process, token) for token in tokens]


def damage(server: Server, buyers: list[Client], locales: Locales) -> Damage:
    """Each buyer places an order with each key, in one locale; reads and repeats them in the other."""
    with api_on(server.urls.app):
        orders = {(buyer, key): buyer.place(key=key).json["order"] for buyer in buyers for key in KEYS}
    server.stop()
    server.environment["LOCPATH"] = str(locales.changed)
    server.start()
    broken_indexes = count_broken_indexes(server)
    with api_on(server.urls.app):
        lists = {
            buyer: [buyer.get(f"/orders?limit=100{own}").json["orders"] for own in ("", "&my_orders=true")]
            for buyer in buyers
        }
        lost = sum(
            buyer.get(f"/orders/{order['order_id']}").status != 200
            or any(order not in listed for listed in lists[buyer])
            for (buyer, _), order in orders.items()
        )
        replayed = sum(is_replayed(buyer, key, order) for (buyer, key), order in orders.items())
    return Damage(lost, len(orders) - replayed, count_orders(server) - len(orders), broken_indexes)


def is_replayed(buyer: Client, key: str, order: object) -> bool:
    answer = buyer.place(key=key)
    return answer.headers.get("idempotent-replayed") == "true" and bool(answer.json["order"] == order)


def count_orders(server: Server) -> int:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(COUNT_IN_HEAP)
        return int(cursor.fetchone()[0])


def count_broken_indexes(server: Server) -> int:
    broken = 0
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("create extension amcheck")
        cursor.execute(INDEXES)
        for (index,) in cursor.fetchall():
            try:
                cursor.execute("select bt_index_check(%s, heapallindexed => true)", [index])
            except psycopg2.InternalError:
                broken += 1
    return broken


@pytest.mark.parametrize("migrated", [False, True], ids=["new", "migrated"])
def test_changed_collation_neither_loses_nor_doubles_orders(
    migrated: bool, server: Server, buyers: list[Client], locales: Locales
) -> None:
    if migrated:
        apply_release_1(server.urls.owner)
    migrate(server.urls.owner)

    assert damage(server, buyers, locales) == Damage(lost=0, not_replayed=0, doubled=0, broken_indexes=0)


def test_changed_collation_breaks_the_schema_of_release_1(
    server: Server, buyers: list[Client], locales: Locales
) -> None:
    """The trial can fail: in release 1 the keys follow the database's locale."""
    apply_release_1(server.urls.owner)

    assert min(damage(server, buyers, locales)) > 0
