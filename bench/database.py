"""The database for all measurements: an embedded PostgreSQL with the same orders for every contender."""

import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg2

from bench.operations import BODY, READER, USER
from local.database import Urls, embedded

ORDERS, TENANTS, READ = 20_000, 20, 1_000
"""Orders of all other tenants, their number, and the orders of the tenant that is read."""
SETTINGS = ("autovacuum", "synchronous_commit")
"""Off. Autovacuum would slow down contenders at random; the wait for the disk at a commit is the same for all
and would make the ratios depend on the disk."""
FIRST_ORDER = datetime(2026, 1, 1, tzinfo=UTC)
ONE_ORDER_EVERY = 1_000
"""Milliseconds."""
ORDER_COLUMNS = (
    *("tenant_id", "order_id", "created_by", "status", "version"),
    *("customer_name", "customer_email", "customer_phone", "shipping_address", "billing_address"),
    *("total_amount", "currency", "created_at", "updated_at"),
)
ITEM_COLUMNS = (
    *("tenant_id", "order_id", "line_no"),
    *("product_name", "product_sku", "quantity", "unit_price"),
)


@dataclass(frozen=True)
class Database:
    urls: Urls
    folder: Path
    version: str
    sampled: list[str]
    """Ids of READER's orders, evenly spread."""

    def url(self, role: str, sockets: Path | None = None) -> str:
        """A connection URL for this role; through a proxy whose socket is in `sockets`, if given."""
        url = self.urls.app.replace("orders_app@", f"{role}@")
        if sockets is None:
            return url
        return f"{url.partition('?')[0]}?host={quote(str(sockets), safe='/')}&port=5432"

    @property
    def sockets(self) -> Path:
        return Path(self._scalar("select split_part(current_setting('unix_socket_directories'), ',', 1)"))

    @property
    def postmaster(self) -> int:
        return int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])

    def backends(self) -> list[int]:
        """Process ids of the connected contenders."""
        with _connected(self.url("postgres")) as cursor:
            cursor.execute("select pid from pg_stat_activity where usename in ('orders_app', 'bench_peer')")
            return [pid for (pid,) in cursor.fetchall()]

    def _scalar(self, query: str) -> Any:
        with _connected(self.url("postgres")) as cursor:
            cursor.execute(query)
            (value,) = cursor.fetchone()
            return value


@contextmanager
def loaded() -> Iterator[Database]:
    """A running server with the orders; removed afterwards."""
    # Not in the project: as root, the server's own user must be able to enter every folder above its data.
    folder = Path(tempfile.mkdtemp(prefix="order-api-bench-"))
    try:
        with embedded(folder) as urls:
            admin = urls.app.replace("orders_app@", "postgres@")
            with _connected(admin) as cursor:
                _make_peer(cursor)
                sampled = _load(cursor)
                for setting in SETTINGS:
                    cursor.execute(f"alter system set {setting} = off")
                cursor.execute("select pg_reload_conf()")
                cursor.execute("vacuum analyze")
                cursor.execute("checkpoint")
                cursor.execute("select current_setting('server_version')")
                ((version,),) = cursor.fetchall()
            yield Database(urls, folder, version, sampled)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def described() -> str:
    return f"{ORDERS:,} orders of {TENANTS} tenants, and {READ:,} of the one that is read; one item each"


def _make_peer(cursor: Any) -> None:
    """The peers' role. They filter by tenant themselves: row-level security must not slow them down."""
    cursor.execute("create role bench_peer login bypassrls")
    cursor.execute("grant usage on schema public to bench_peer")
    cursor.execute("grant select, insert on orders, order_items, idempotency_keys to bench_peer")


def _load(cursor: Any) -> list[str]:
    """Load READER's orders, interleaved in time with those of other tenants. Returns a sample of ids."""
    order = json.loads(BODY)
    (item,) = order["items"]
    tenants = [f"tenant-{number}" for number in range(1, TENANTS + 1)]
    of_order = [order[name] for name in ORDER_COLUMNS[5:12]]
    of_item = [item[name] for name in ITEM_COLUMNS[3:]]
    chance = random.Random(4)  # noqa: S311 (the same ids in every run)
    orders, items, read = io.StringIO(), io.StringIO(), []
    for number in range(ORDERS + READ):
        tenant = READER if number % (ORDERS // READ + 1) == 0 else tenants[number % TENANTS]
        milliseconds = int(FIRST_ORDER.timestamp() * 1000) + number * ONE_ORDER_EVERY
        order_id = _uuid7(milliseconds, chance)
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
        if tenant == READER:
            read.append(order_id)
        columns = [tenant, order_id, USER, "pending", 1, *of_order, moment, moment]
        orders.write("\t".join(map(str, columns)) + "\n")
        items.write("\t".join(map(str, [tenant, order_id, 1, *of_item])) + "\n")
    for table, columns_of, rows in (("orders", ORDER_COLUMNS, orders), ("order_items", ITEM_COLUMNS, items)):
        rows.seek(0)
        cursor.copy_expert(f"copy {table} ({', '.join(columns_of)}) from stdin", rows)
    return read[:: max(1, len(read) // 50)]


def _uuid7(milliseconds: int, chance: random.Random) -> str:
    """RFC 9562, section 5.7."""
    return str(
        UUID(
            int=milliseconds << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | chance.getrandbits(62)
        )
    )


@contextmanager
def _connected(url: str) -> Iterator[Any]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


@contextmanager
def pinned(database: Database, core: int | None) -> Iterator[bool]:
    """Backends of connections that are opened inside run on that core; other processes do not move.

    Yields False where this system cannot pin processes.
    """
    if core is None:
        yield False
        return
    before = os.sched_getaffinity(database.postmaster)
    os.sched_setaffinity(database.postmaster, {core})  # a backend is forked from it, with its cores
    try:
        yield True
    finally:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(database.postmaster, before)
