"""What runs out, is held or falls silent costs a 503 in bounded time, and nothing afterwards."""

import http.client
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import psycopg2
import pytest

from local.database import apply_schema
from local.postgres import SERVER_USER
from tests.faults.test_failover import until
from tests.support.servers import private_server
from tools.client import SEED_BYTES, Answer, Client, over_http, seed
from tools.network_faults import AnswerFault
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected
from tools.soak.soak_environment import Door, TokenIssuer, door, rows, token_issuer, url

pytestmark = pytest.mark.slow
THREADS, CONNECTIONS, IDLE = 6, 4, 2
LOCK_TIMEOUT, STATEMENT_TIMEOUT, READ_TIMEOUT, POOL_TIMEOUT = 4, 5, 6, 1
"""Each so much shorter than the next that a busy machine does not turn them round."""
LONGEST_WAIT = 15.0
"""Seconds; no limit of a host is shorter."""


@dataclass
class Site:
    server: Server
    proxy: Proxy
    product: Door
    tokens: TokenIssuer

    def client(self, tenant: str = "acme") -> Client:
        return Client(over_http("127.0.0.1", self.product.port), self.tokens.token(tenant, "alice"))

    def rows(self, query: str) -> list[tuple[object, ...]]:
        return rows(self.server, query)

    def waiting(self) -> int:
        """How many of the API's connections wait for a lock."""
        ((waiting,),) = self.rows(
            "select count(*) from pg_stat_activity where usename = 'orders_app' and wait_event_type = 'Lock'"
        )
        return int(str(waiting))

    def connections(self) -> list[tuple[object, ...]]:
        return self.rows("select state from pg_stat_activity where usename = 'orders_app'")

    def disconnect(self) -> None:
        """The API's connections end; it has to open others."""
        self.rows("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'orders_app'")
        until(lambda: not self.connections())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody holds the table of orders."""
        with connected(self.server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("begin; lock table orders in access exclusive mode")
            yield

    def half_an_order(self) -> http.client.HTTPConnection:
        """A create that the door has begun to read, on a thread that waits for its last byte."""
        connection = http.client.HTTPConnection("127.0.0.1", self.product.port, timeout=30)
        connection.putrequest("POST", "/orders")
        connection.putheader("Authorization", f"Bearer {self.tokens.token('acme', 'alice')}")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(SEED_BYTES)))
        connection.endheaders(SEED_BYTES[:-1])
        return connection

    def at_once(self, asking: Callable[[], Answer], times: int) -> "list[Future[Answer]]":
        pool = ThreadPoolExecutor(times)
        asked = [pool.submit(asking) for _ in range(times)]
        pool.shutdown(wait=False)
        return asked


def the_rest_of(order: http.client.HTTPConnection) -> int:
    """The status of the answer."""
    order.send(SEED_BYTES[-1:])
    with closing(order):
        return order.getresponse().status


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        server = stack.enter_context(private_server())
        apply_schema(server.urls.owner)
        rows(server, "create role reporting login")
        rows(server, f"alter role orders_app set lock_timeout = '{LOCK_TIMEOUT}s'")
        rows(server, f"alter role orders_app set statement_timeout = '{STATEMENT_TIMEOUT}s'")
        tokens = stack.enter_context(token_issuer(tmp_path_factory.mktemp("issuer")))
        proxy = Proxy(None, server.folder, parses=False)
        stack.callback(proxy.close)
        variables = {
            **tokens.variables,
            "DATABASE_URL": url(proxy.port),
            "DB_POOL_SIZE": str(IDLE),
            "DB_POOL_MAX": str(CONNECTIONS),
            "DB_POOL_TIMEOUT": str(POOL_TIMEOUT),
            "DB_READ_TIMEOUT": str(READ_TIMEOUT),
            "DB_CONNECT_TIMEOUT": "2",
        }
        folder = tmp_path_factory.mktemp("resources") / "product"
        product = stack.enter_context(door(folder, variables, threads=THREADS))
        yield Site(server, proxy, product, tokens)


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """Whatever a test does to it: behind it no thread hangs and no connection is left over."""
    (worker,) = running.product.workers()
    yield running

    customer = running.client()
    assert customer.place().status == 201
    halves = [running.half_an_order() for _ in range(THREADS - CONNECTIONS)]
    with running.locked():
        # Each thread is held at once: those by the rest of their request, these by a connection of their own.
        asked = running.at_once(lambda: customer.get("/orders?limit=1"), CONNECTIONS)
        until(lambda: running.waiting() == CONNECTIONS, LOCK_TIMEOUT)
    assert {each.result().status for each in asked} == {200}
    assert {the_rest_of(order) for order in halves} == {201}
    until(lambda: running.connections() == [("idle",)] * IDLE)
    assert running.product.workers() == [worker]


def assert_unavailable(answer: Answer) -> None:
    assert (answer.status, answer.slug) == (503, "unavailable")
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1


@contextmanager
def in_bounded_time() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < LONGEST_WAIT


def test_requests_beyond_the_pool_wait_only_briefly(site: Site) -> None:
    customer = site.client()
    with site.locked(), in_bounded_time():
        holding = site.at_once(lambda: customer.get("/orders"), CONNECTIONS)
        until(lambda: site.waiting() == CONNECTIONS)
        assert_unavailable(customer.get("/health/ready"))
        assert customer.get("/health").status == 200
        for each in holding:
            assert_unavailable(each.result())


@contextmanager
def a_limit_of_the_role(site: Site) -> Iterator[None]:
    site.rows("alter role orders_app connection limit 0")
    try:
        yield
    finally:
        site.rows("alter role orders_app connection limit -1")


@contextmanager
def all_connections_taken(site: Site) -> Iterator[None]:
    """By another service, but for those that are kept for superusers."""
    with ExitStack() as held:
        with suppress(psycopg2.OperationalError):
            while True:
                held.enter_context(connected(site.server.url("reporting", "postgres")))
        yield


@pytest.mark.parametrize("taken", [a_limit_of_the_role, all_connections_taken])
def test_exhausted_server_connections_are_503_until_freed(
    site: Site, taken: Callable[[Site], AbstractContextManager[None]]
) -> None:
    customer = site.client()
    site.disconnect()
    with taken(site), in_bounded_time():
        assert_unavailable(customer.get("/health/ready"))
        assert_unavailable(customer.place())
        assert_unavailable(customer.get("/orders"))

    assert customer.get("/health/ready").status == 200


def test_locked_table_is_503_in_bounded_time(site: Site) -> None:
    customer = site.client()
    with site.locked(), in_bounded_time():
        asked = [*site.at_once(customer.place, 2), *site.at_once(lambda: customer.get("/orders"), 2)]
        for each in asked:
            assert_unavailable(each.result())


def test_key_in_flight_does_not_block_other_tenants(site: Site) -> None:
    """Its first request is still on its way, in another process that hangs."""
    acme, borealis = site.client("acme"), site.client("borealis")
    assert acme.place(key="held").status == 201
    with connected(site.server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("begin; delete from idempotency_keys where idempotency_key = 'held'")
        (held,) = site.at_once(lambda: acme.place(key="held"), 1)
        until(lambda: site.waiting() == 1)
        others = 0
        while site.waiting():
            assert borealis.place(key="held").status == 201
            assert borealis.get("/orders?limit=1").status == 200
            others += 1
        with in_bounded_time():
            answer = held.result()

    assert (answer.status, answer.slug) == (409, "idempotency-in-flight")
    assert others > 1


def test_slow_queries_time_out_without_slowing_other_tenants(site: Site) -> None:
    acme, borealis = site.client("acme"), site.client("borealis")
    assert [each.place().status for each in (acme, borealis)] == [201, 201]
    site.rows(
        "create policy slow on orders as restrictive for select to orders_app"
        " using (tenant_id <> 'acme' or pg_sleep(60) is not null)"
    )
    try:
        slow = site.at_once(lambda: acme.get("/orders?limit=1"), 2)
        others = 0
        while not any(each.done() for each in slow):
            assert borealis.get("/orders?limit=1").status == 200
            others += 1
        with in_bounded_time():
            for each in slow:
                assert_unavailable(each.result())
    finally:
        site.rows("drop policy slow on orders")

    assert others > 1
    assert acme.get("/orders?limit=1").status == 200


def test_read_only_database_answers_reads_and_recovers(site: Site) -> None:
    customer = site.client()
    order_id = customer.place().json["order"]["order_id"]

    site.rows("alter role orders_app set default_transaction_read_only = on")
    try:
        site.disconnect()
        with in_bounded_time():
            assert_unavailable(customer.place())
            assert_unavailable(customer.place(key="refused"))
            assert customer.get(f"/orders/{order_id}").status == 200
            assert customer.get("/orders").status == 200
    finally:
        site.rows("alter role orders_app reset default_transaction_read_only")

    # Sessions that were told so are given up at a refusal, but for those of the last moments.
    until(lambda: customer.place(key="refused").status == 201)


@pytest.mark.parametrize("asked", ["read", "written"])
def test_silent_database_is_503_in_bounded_time(site: Site, asked: str) -> None:
    customer = site.client()
    assert customer.place().status == 201
    site.proxy.faults.arm(AnswerFault.SWALLOW, 1)

    with in_bounded_time():
        answer = customer.get("/orders") if asked == "read" else customer.place()

    assert_unavailable(answer)
    assert ("it is not known whether" in answer.json["detail"]) == (asked == "written")


def test_network_blackhole_is_503_in_bounded_time(site: Site) -> None:
    customer = site.client()
    site.disconnect()
    with site.proxy.stalled(), in_bounded_time():
        for each in site.at_once(lambda: customer.get("/orders"), THREADS - 1):
            assert_unavailable(each.result())
        assert customer.get("/health").status == 200


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system with hardly any room."""
    folder = Path(tempfile.mkdtemp(prefix="order-api-disk-"))
    try:
        done = mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", folder)
        if done.returncode:
            reason = f"No small disk to fill: as root, in a container with CAP_SYS_ADMIN. {done.stderr!r}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        shutil.chown(folder, SERVER_USER)
        yield folder
        subprocess.run(["umount", "--lazy", folder], check=True)
    finally:
        folder.rmdir()


def mount(*arguments: str | Path) -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which("mount") or "/bin/mount"
    return subprocess.run([program, *arguments], capture_output=True, check=False)


def test_full_disk_rejects_orders_but_answers_reads(site: Site, small_disk: Path) -> None:
    customer = site.client("full")
    site.rows(f"create tablespace small location '{small_disk}'")
    try:
        for table in ("orders", "order_items", "idempotency_keys"):
            site.rows(f"alter table {table} set tablespace small")
        placed = []
        # What cannot be compressed, so that it is soon full.
        large = seed(shipping_address=token_hex(1000))
        while (answer := customer.place(large)).status == 201:
            placed.append(answer.json["order"]["order_id"])
        with in_bounded_time():
            assert_unavailable(answer)
            assert_unavailable(customer.place(large, key="later"))
            assert customer.get("/health/ready").status == 200
            assert {customer.get(f"/orders/{order_id}").status for order_id in placed[-20:]} == {200}
        assert site.rows("select count(*) from orders where tenant_id = 'full'") == [(len(placed),)]

        assert mount("-o", "remount,size=8m", small_disk).returncode == 0
        assert customer.place(large, key="later").status == 201
    finally:
        for table in ("orders", "order_items", "idempotency_keys"):
            site.rows(f"alter table {table} set tablespace pg_default")
        site.rows("drop tablespace small")
