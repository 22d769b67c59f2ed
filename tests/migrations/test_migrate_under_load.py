"""A database of release 1.0.0 with many orders is migrated while both releases serve.

ORDERS=10000000 in the environment tries it with more; `-s` prints the time of each step.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from migrations.migrate import migrate
from tests.chalicelib.database.test_schema import new_database, owner_url, snapshot
from tests.support.release_1 import Release1, apply_release_1
from tests.support.servers import api_on, private_server
from tools.client import Client
from tools.postgres_server import EMBEDDED, Server, connected

pytestmark = pytest.mark.slow

ORDERS = int(os.environ.get("ORDERS", "1000000"))
FILL = """
    set maintenance_work_mem = '256MB';
    alter table order_items drop constraint order_items_order_fkey, drop constraint order_items_pkey;
    alter table orders drop constraint orders_pkey;
    drop index orders_created_by_idx;
    insert into orders
        select 'tenant-' || g / 1000, lpad(to_hex(g), 32, '0')::uuid, 'user-' || g % 50, 'pending', 1,
               'John Doe', 'john@example.com', null, null, null, 99.98, 'USD', now(), now()
        from generate_series(1, {orders}) as g;
    insert into order_items select tenant_id, order_id, 1, 'Widget', 'WDG-001', 2, 49.99 from orders;
    insert into idempotency_keys
        select tenant_id, created_by, order_id::text, repeat('0', 64), order_id, now() from orders
        limit {orders} / 5;
    alter table orders add constraint orders_pkey primary key (tenant_id, order_id);
    create index orders_created_by_idx on orders (tenant_id, created_by, order_id);
    alter table order_items
        add constraint order_items_pkey primary key (tenant_id, order_id, line_no),
        add constraint order_items_order_fkey
            foreign key (tenant_id, order_id) references orders (tenant_id, order_id);
    analyze"""
STORED = "select tenant_id, order_id::text from orders where tenant_id = any(%s)"
MAX_WAIT = "1s"
"""A request that waits longer for a lock fails."""


@dataclass
class Load:
    """Threads that place, replay, read and list until they are stopped."""

    placed: list[tuple[str, str]] = field(default_factory=list)
    """Tenant and id of each acknowledged order."""
    failures: list[BaseException] = field(default_factory=list)
    longest: float = 0
    """Seconds of the slowest round of requests."""
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, tenant: str, round_of_requests: Callable[[str], str]) -> None:
        try:
            while not self.stop.is_set():
                began = time.monotonic()
                self.placed.append((tenant, round_of_requests(uuid4().hex)))
                self.longest = max(self.longest, time.monotonic() - began)
        except BaseException as failure:
            self.failures.append(failure)


@contextmanager
def running(load: Load, *clients: tuple[str, Callable[[str], str]]) -> Iterator[None]:
    threads = [threading.Thread(target=load.run, args=client) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()


def use_api(client: Client) -> Callable[[str], str]:
    """A round of requests to this release's API."""

    def place_and_read(key: str) -> str:
        placed = client.place(key=key)
        order_id = str(placed.json["order"]["order_id"])
        answers = [placed, client.place(key=key), client.get(f"/orders/{order_id}"), client.get("/orders")]
        assert [answer.status for answer in answers] == [201, 201, 200, 200], answers
        return order_id

    return place_and_read


def use_release_1(client: Release1) -> Callable[[str], str]:
    def place_and_read(key: str) -> str:
        order_id = client.place(key)
        assert client.replay(key) == order_id
        assert f'"order_id":"{order_id}"' in client.get(order_id)
        assert client.page() > 0
        return order_id

    return place_and_read


@pytest.fixture
def server() -> Iterator[Server]:
    with private_server() as server:
        apply_release_1(server.urls.owner)
        with connected(server.url("postgres")) as connection:
            for setting in ("fsync = off", "max_wal_size = '16GB'"):
                connection.cursor().execute(f"alter system set {setting}")
            connection.cursor().execute(f"select pg_reload_conf(); {FILL.format(orders=ORDERS)}")
            connection.cursor().execute(f"alter role orders_app set lock_timeout = '{MAX_WAIT}'")
        yield server


def test_both_releases_serve_during_a_migration(server: Server, alice: Client, tenant: str) -> None:
    load = Load()
    release_1 = Release1(server.urls.app, "acme")

    with (
        api_on(server.urls.app),
        running(load, (tenant, use_api(alice)), ("acme", use_release_1(release_1))),
    ):
        began = time.monotonic()
        migrate(server.urls.owner, quiet=False)
        seconds = time.monotonic() - began
        sys.stderr.write(f"{ORDERS} orders: {seconds:.1f} s, slowest round {load.longest:.2f} s\n")
        before = len(load.placed)
        while len(load.placed) < before + 10 and not load.failures:
            time.sleep(0.01)

    assert load.failures == []
    assert load.longest < 4, "a round has four requests"
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(STORED, [[tenant, "acme"]])
        assert sorted(cursor.fetchall()) == sorted(load.placed)
    with new_database(server.url("postgres")) as new:
        migrate(owner_url(new))
        assert snapshot(EMBEDDED, server.url("postgres")) == snapshot(EMBEDDED, new)
