"""Exhausted, locked or silent resources cause a 503 within a time limit, and have no effect afterwards."""

import http.client
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import psycopg2
import pytest

from local.postgres import SERVER_USER
from migrations.migrate import migrate
from tests.support.refusals import assert_unavailable
from tests.support.servers import private_server
from tests.support.waiting import until, within
from tools.client import SEED_BYTES, Answer, Client, over_http, seed
from tools.network_faults import AnswerFault
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected
from tools.soak.soak_environment import Door, TokenIssuer, door, rows, token_issuer, url

pytestmark = pytest.mark.slow
THREADS, CONNECTIONS, IDLE = 6, 4, 2
LOCK_TIMEOUT, STATEMENT_TIMEOUT, READ_TIMEOUT, POOL_TIMEOUT = 4, 5, 6, 1
"""Seconds, far enough apart that their order holds on a busy machine."""
MAX_WAIT = 15.0
"""Seconds; every host's own time limit is longer."""


@dataclass
class Deployment:
    server: Server
    proxy: Proxy
    product: Door
    tokens: TokenIssuer

    def client(self, tenant: str = "acme") -> Client:
        return Client(over_http("127.0.0.1", self.product.port), self.tokens.token(tenant, "alice"))

    def rows(self, query: str) -> list[tuple[object, ...]]:
        return rows(self.server, query)

    def lock_waits(self) -> int:
        """Number of the API's connections that wait for a lock."""
        ((lock_waits,),) = self.rows(
            "select count(*) from pg_stat_activity where usename = 'orders_app' and wait_event_type = 'Lock'"
        )
        return int(str(lock_waits))

    def connections(self) -> list[tuple[object, ...]]:
        return self.rows("select state from pg_stat_activity where usename = 'orders_app'")

    def disconnect(self) -> None:
        """Terminates the API's connections, so that it has to open new ones."""
        self.rows("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'orders_app'")
        until(lambda: not self.connections())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Another session holds an exclusive lock on the orders table."""
        with connected(self.server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("begin; lock table orders in access exclusive mode")
            yield

    def start_order(self) -> http.client.HTTPConnection:
        """Sends a create without its last byte, which blocks one thread of the host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.product.port, timeout=30)
        connection.putrequest("POST", "/orders")
        connection.putheader("Authorization", f"Bearer {self.tokens.token('acme', 'alice')}")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(SEED_BYTES)))
        connection.endheaders(SEED_BYTES[:-1])
        return connection

    def send_concurrently(self, send: Callable[[], Answer], times: int) -> "list[Future[Answer]]":
        pool = ThreadPoolExecutor(times)
        futures = [pool.submit(send) for _ in range(times)]
        pool.shutdown(wait=False)
        return futures


def finish(order: http.client.HTTPConnection) -> int:
    """Sends the last byte; returns the answer's status."""
    order.send(SEED_BYTES[-1:])
    with closing(order):
        return order.getresponse().status


@pytest.fixture(scope="module")
def module_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with ExitStack() as stack:
        server = stack.enter_context(private_server())
        migrate(server.urls.owner)
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
        yield Deployment(server, proxy, product, tokens)


@pytest.fixture
def deployment(module_deployment: Deployment) -> Iterator[Deployment]:
    """After each test checks that no thread hangs and no connection is left over."""
    (worker,) = module_deployment.product.workers()
    yield module_deployment

    customer = module_deployment.client()
    assert customer.place().status == 201
    started_orders = [module_deployment.start_order() for _ in range(THREADS - CONNECTIONS)]
    with module_deployment.locked():
        # Every thread is busy: some wait for the last byte of a request, the others for the lock.
        futures = module_deployment.send_concurrently(lambda: customer.get("/orders?limit=1"), CONNECTIONS)
        until(lambda: module_deployment.lock_waits() == CONNECTIONS, LOCK_TIMEOUT)
    assert {future.result().status for future in futures} == {200}
    assert {finish(order) for order in started_orders} == {201}
    until(lambda: module_deployment.connections() == [("idle",)] * IDLE)
    assert module_deployment.product.workers() == [worker]


def test_requests_beyond_the_pool_wait_only_briefly(deployment: Deployment) -> None:
    customer = deployment.client()
    with deployment.locked(), within(MAX_WAIT):
        futures = deployment.send_concurrently(lambda: customer.get("/orders"), CONNECTIONS)
        until(lambda: deployment.lock_waits() == CONNECTIONS)
        assert_unavailable(customer.get("/health/ready"))
        assert customer.get("/health").status == 200
        for future in futures:
            assert_unavailable(future.result())


@contextmanager
def role_connection_limit(deployment: Deployment) -> Iterator[None]:
    deployment.rows("alter role orders_app connection limit 0")
    try:
        yield
    finally:
        deployment.rows("alter role orders_app connection limit -1")


@contextmanager
def no_free_connections(deployment: Deployment) -> Iterator[None]:
    """Another service uses all connections except those reserved for superusers."""
    with ExitStack() as connections:
        with suppress(psycopg2.OperationalError):
            while True:
                connections.enter_context(connected(deployment.server.url("reporting", "postgres")))
        yield


@pytest.mark.parametrize("exhausted", [role_connection_limit, no_free_connections])
def test_exhausted_server_connections_are_503_until_freed(
    deployment: Deployment, exhausted: Callable[[Deployment], AbstractContextManager[None]]
) -> None:
    customer = deployment.client()
    deployment.disconnect()
    with exhausted(deployment), within(MAX_WAIT):
        assert_unavailable(customer.get("/health/ready"))
        assert_unavailable(customer.place())
        assert_unavailable(customer.get("/orders"))

    assert customer.get("/health/ready").status == 200


def test_locked_table_is_503_in_bounded_time(deployment: Deployment) -> None:
    customer = deployment.client()
    with deployment.locked(), within(MAX_WAIT):
        futures = [
            *deployment.send_concurrently(customer.place, 2),
            *deployment.send_concurrently(lambda: customer.get("/orders"), 2),
        ]
        for future in futures:
            assert_unavailable(future.result())


def test_key_in_flight_does_not_block_other_tenants(deployment: Deployment) -> None:
    """The first request with the key is still in flight, in another process that hangs."""
    acme, borealis = deployment.client("acme"), deployment.client("borealis")
    assert acme.place(key="held").status == 201
    with connected(deployment.server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("begin; delete from idempotency_keys where idempotency_key = 'held'")
        (waiting,) = deployment.send_concurrently(lambda: acme.place(key="held"), 1)
        until(lambda: deployment.lock_waits() == 1)
        others = 0
        while deployment.lock_waits():
            assert borealis.place(key="held").status == 201
            assert borealis.get("/orders?limit=1").status == 200
            others += 1
        with within(MAX_WAIT):
            answer = waiting.result()

    assert (answer.status, answer.slug) == (409, "idempotency-in-flight")
    assert others > 1


def test_slow_queries_time_out_without_slowing_other_tenants(deployment: Deployment) -> None:
    acme, borealis = deployment.client("acme"), deployment.client("borealis")
    assert [client.place().status for client in (acme, borealis)] == [201, 201]
    deployment.rows(
        "create policy slow on orders as restrictive for select to orders_app"
        " using (tenant_id <> 'acme' or pg_sleep(60) is not null)"
    )
    try:
        slow = deployment.send_concurrently(lambda: acme.get("/orders?limit=1"), 2)
        others = 0
        while not any(future.done() for future in slow):
            assert borealis.get("/orders?limit=1").status == 200
            others += 1
        with within(MAX_WAIT):
            for future in slow:
                assert_unavailable(future.result())
    finally:
        deployment.rows("drop policy slow on orders")

    assert others > 1
    assert acme.get("/orders?limit=1").status == 200


def test_read_only_database_answers_reads_and_recovers(deployment: Deployment) -> None:
    customer = deployment.client()
    order_id = customer.place().json["order"]["order_id"]

    deployment.rows("alter role orders_app set default_transaction_read_only = on")
    try:
        deployment.disconnect()
        with within(MAX_WAIT):
            assert_unavailable(customer.place())
            assert_unavailable(customer.place(key="refused"))
            assert customer.get(f"/orders/{order_id}").status == 200
            assert customer.get("/orders").status == 200
    finally:
        deployment.rows("alter role orders_app reset default_transaction_read_only")

    # The pool discards read-only sessions after a refusal, but the newest may fail once more.
    until(lambda: customer.place(key="refused").status == 201)


@pytest.mark.parametrize("operation", ["read", "written"])
def test_silent_database_is_503_in_bounded_time(deployment: Deployment, operation: str) -> None:
    customer = deployment.client()
    assert customer.place().status == 201
    deployment.proxy.faults.arm(AnswerFault.SWALLOW, 1)

    with within(MAX_WAIT):
        answer = customer.get("/orders") if operation == "read" else customer.place()

    assert_unavailable(answer)
    assert ("it is not known whether" in answer.json["detail"]) == (operation == "written")


def test_network_blackhole_is_503_in_bounded_time(deployment: Deployment) -> None:
    customer = deployment.client()
    deployment.disconnect()
    with deployment.proxy.stalled(), within(MAX_WAIT):
        for future in deployment.send_concurrently(lambda: customer.get("/orders"), THREADS - 1):
            assert_unavailable(future.result())
        assert customer.get("/health").status == 200


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 512 KB."""
    folder = Path(tempfile.mkdtemp(prefix="order-api-disk-"))
    try:
        result = mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", folder)
        if result.returncode:
            reason = f"Cannot mount a small disk: needs root, in a container CAP_SYS_ADMIN. {result.stderr!r}"
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


def test_full_disk_rejects_orders_but_answers_reads(deployment: Deployment, small_disk: Path) -> None:
    customer = deployment.client("full")
    deployment.rows(f"create tablespace small location '{small_disk}'")
    try:
        for table in ("orders", "order_items", "idempotency_keys"):
            deployment.rows(f"alter table {table} set tablespace small")
        placed = []
        # Random data cannot be compressed, so the disk is full soon.
        large = seed(shipping_address=token_hex(1000))
        while (answer := customer.place(large)).status == 201:
            placed.append(answer.json["order"]["order_id"])
        with within(MAX_WAIT):
            assert_unavailable(answer)
            assert_unavailable(customer.place(large, key="later"))
            assert customer.get("/health/ready").status == 200
            assert {customer.get(f"/orders/{order_id}").status for order_id in placed[-20:]} == {200}
        assert deployment.rows("select count(*) from orders where tenant_id = 'full'") == [(len(placed),)]

        assert mount("-o", "remount,size=8m", small_disk).returncode == 0
        assert customer.place(large, key="later").status == 201
    finally:
        for table in ("orders", "order_items", "idempotency_keys"):
            deployment.rows(f"alter table {table} set tablespace pg_default")
        deployment.rows("drop tablespace small")
