"""The database crashes, restarts, is slow or full: clients get 503 within seconds, and it recovers."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from chalicelib.composition import connections
from chalicelib.database.pool import MIN_RECONNECT_INTERVAL
from migrations.migrate import migrate
from tests.conftest import NewClient
from tests.support.refusals import assert_unavailable
from tests.support.servers import READ_ONLY, api_on, private_server
from tests.support.waiting import until, within
from tools.client import Answer, Client, Transport
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

LONGEST_WAIT = 5.0
"""Seconds; shorter than a function's timeout, which must never be what ends a request."""
SHORT_STATEMENT_TIMEOUT = "-c%20lock_timeout%3D0%20-c%20statement_timeout%3D300ms"


@pytest.fixture(scope="module")
def own_server(database: object) -> Iterator[Server]:  # noqa: ARG001 (as root it makes the server's user)
    with private_server() as server:
        migrate(server.urls.owner)
        yield server


@pytest.fixture
def api(own_server: Server, alice: Client) -> Iterator[Client]:
    """Client of an API whose database server a test may crash."""
    own_server.start_again()
    with api_on(own_server.urls.app):
        yield alice


@dataclass
class Customers:
    """Clients that keep sending requests, whatever the answers."""

    answers: list[Answer] = field(default_factory=list)
    slowest: float = 0.0
    keys: list[str] = field(default_factory=list)
    """Idempotency keys, each retried until its order was placed."""
    placed: list[str] = field(default_factory=list)
    """Order ids of the 201 answers."""
    errors: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, request: Callable[[], Answer]) -> Answer:
        started = time.monotonic()
        answer = request()
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.answers.append(answer)
        return answer

    def repeat(self, request: Callable[[], None]) -> None:
        try:
            while not self.stop.is_set():
                request()
        except BaseException as error:
            self.errors.append(error)
            raise

    def place_once(self, client: Client) -> None:
        key = uuid4().hex
        self.keys.append(key)
        while (answer := self.ask(lambda: client.place(key=key))).status != 201:
            time.sleep(0.05)
        self.placed.append(answer.json["order"]["order_id"])


@contextmanager
def customers(client: Client) -> Iterator[Customers]:
    load = Customers()
    requests = (
        lambda: load.place_once(client),
        lambda: load.place_once(client),
        lambda: discard(load.ask(lambda: client.get("/orders?limit=5"))),
        lambda: discard(load.ask(lambda: client.get("/orders/01936f3c-3b5e-7cc0-98c4-dc0c0c07398f"))),
        lambda: discard(load.ask(client.place)),
    )
    threads = [threading.Thread(target=load.repeat, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in threads), "a request hangs"


def discard(_answer: Answer) -> None:
    pass


def test_database_crash_causes_503s_until_it_restarts(
    api: Client, client: NewClient, http: Transport, own_server: Server
) -> None:
    def answered(status: int) -> bool:
        return any(answer.status == status for answer in load.answers)

    with customers(client(transport=http)) as load:
        until(lambda: len(load.placed) > 10)
        kill_during_requests(own_server)
        until(lambda: answered(503))
        assert_unavailable(api.get("/health/ready"))
        assert api.get("/health").status == 200
        own_server.start()
        until(lambda: api.get("/health/ready").status == 200)
        before = len(load.placed)
        until(lambda: len(load.placed) > before + 10)

    assert not load.errors
    assert {answer.status for answer in load.answers} == {200, 201, 404, 503}
    for answer in load.answers:
        if answer.status == 503:
            assert_unavailable(answer)
    assert load.slowest < LONGEST_WAIT
    assert len(set(load.placed)) == len(load.placed) == len(set(load.keys))
    assert all(api.get(f"/orders/{order_id}").status == 200 for order_id in load.placed)


def test_each_key_places_one_order_across_a_crash(
    api: Client, client: NewClient, http: Transport, own_server: Server, tenant: str
) -> None:
    with customers(client(transport=http)) as load:
        until(lambda: len(load.placed) > 5)
        kill_during_requests(own_server)
        own_server.start()
        before = len(load.placed)
        until(lambda: len(load.placed) > before + 5)

    with connected(own_server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select count(*), count(distinct order_id) from idempotency_keys"
            " join orders using (tenant_id, order_id) where tenant_id = %s",
            [tenant],
        )
        assert cursor.fetchone() == (len(load.keys), len(load.keys))
    assert api.get("/health/ready").status == 200


def kill_during_requests(server: Server) -> None:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("begin; lock table orders in access exclusive mode")
        until(lambda: has_lock_waiter(server))
        server.kill()


def test_cut_idle_connections_cause_no_errors(
    api: Client, client: NewClient, http: Transport, own_server: Server
) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client(transport=http).get("/orders"), range(40)))
    assert terminate_sessions(own_server) >= 1

    assert api.place().status == 201

    terminate_sessions(own_server)
    assert api.get("/orders").status == 200
    terminate_sessions(own_server)
    assert api.get("/health/ready").status == 200


def terminate_sessions(server: Server) -> int:
    """Terminates the API's sessions; returns how many there were."""
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select pid from pg_stat_activity where usename = 'orders_app'")
        pids = [pid for (pid,) in cursor.fetchall()]
        cursor.execute("select pg_terminate_backend(pid) from unnest(%s) as pid", [pids])

        def all_ended() -> bool:
            cursor.execute("select from pg_stat_activity where pid = any(%s)", [pids])
            return not cursor.fetchall()

        until(all_ended)
        return len(pids)


@pytest.mark.parametrize("target", ["/orders", "/health/ready"])
def test_closed_port_is_503_at_once(alice: Client, target: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with api_on(f"postgresql://orders_app@127.0.0.1:{port}/orders"), within(1):
        assert_unavailable(alice.get(target))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unresponsive_database_host_times_out_with_503(alice: Client, method: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        with api_on(f"postgresql://orders_app@127.0.0.1:{port}/orders"), within(LONGEST_WAIT):
            assert_unavailable(alice.get("/orders") if method == "GET" else alice.place())


@contextmanager
def locked_orders(server: Server) -> Iterator[None]:
    """Another session holds an exclusive lock on orders."""
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("begin; lock table orders in access exclusive mode")
        yield
        cursor.execute("rollback")


@pytest.mark.parametrize("request_", ["place", "list"])
def test_wait_for_a_locked_table_is_bounded(api: Client, own_server: Server, request_: str) -> None:
    with locked_orders(own_server), within(LONGEST_WAIT):
        assert_unavailable(api.place() if request_ == "place" else api.get("/orders"))

    assert api.place().status == 201


def test_statement_timeout_cancels_a_slow_statement(api: Client, own_server: Server) -> None:
    with api_on(f"{own_server.urls.app}&options={SHORT_STATEMENT_TIMEOUT}"):
        with locked_orders(own_server), within(2):
            assert_unavailable(api.place())

        assert api.place().status == 201


def test_wait_for_a_pool_connection_is_bounded(
    api: Client, client: NewClient, http: Transport, own_server: Server
) -> None:
    other = client(transport=http)
    limits = {"DB_POOL_SIZE": "1", "DB_POOL_MAX": "1", "DB_POOL_TIMEOUT": "1"}

    with api_on(own_server.urls.app, **limits), ThreadPoolExecutor(1) as pool:
        with locked_orders(own_server):
            first = pool.submit(other.get, "/orders")
            until(lambda: has_lock_waiter(own_server))
            with within(1.5):
                assert_unavailable(api.get("/health/ready"))
        assert first.result().status == 200
        assert api.get("/orders").status == 200


def has_lock_waiter(server: Server) -> bool:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_locks where not granted")
        return bool(cursor.fetchone() != (0,))


def test_read_is_retried_when_its_connection_breaks(api: Client, own_server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        with locked_orders(own_server):
            reading = pool.submit(api.get, "/orders")
            until(lambda: has_lock_waiter(own_server))
            terminate_sessions(own_server)
            until(lambda: has_lock_waiter(own_server))

        assert reading.result().status == 200


def test_order_without_a_key_is_not_retried(api: Client, tenant: str, own_server: Server) -> None:
    with ThreadPoolExecutor(1) as pool, locked_orders(own_server):
        placing = pool.submit(api.place)
        until(lambda: has_lock_waiter(own_server))
        terminate_sessions(own_server)
        assert_unavailable(placing.result())
        assert "it is not known whether" in placing.result().json["detail"]

    with connected(own_server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from orders where tenant_id = %s", [tenant])
        assert cursor.fetchone() == (0,)


def test_read_only_session_still_answers_reads(api: Client, own_server: Server) -> None:
    order_id = api.place().json["order"]["order_id"]

    with api_on(f"{own_server.urls.app}&options={READ_ONLY}"):
        assert api.get(f"/orders/{order_id}").status == 200
        assert api.get("/orders").json["orders"][0]["order_id"] == order_id
        assert_unavailable(api.place())
        assert_unavailable(api.place(key=uuid4().hex))


def test_rejected_writes_do_not_make_other_tenants_reconnect(
    api: Client, client: NewClient, own_server: Server
) -> None:
    """Like a full disk: a new connection would fail the same way, so the open one is kept."""
    globex = client(tenant="globex")
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), own_server.folder)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}&options={READ_ONLY}"),
        proxy.watched() as traffic,
    ):
        started = time.monotonic()
        for _ in range(40):
            assert_unavailable(api.place())
            assert globex.get("/orders").status == 200
        elapsed = time.monotonic() - started

    assert traffic.messages.count("startup") <= 1 + elapsed / MIN_RECONNECT_INTERVAL


def test_connections_to_a_demoted_primary_are_dropped(api: Client, own_server: Server) -> None:
    """Idle connections go there too: the next request opens a connection to the current primary."""
    with api_on(f"{own_server.urls.app}&options={READ_ONLY}"):
        pool = connections().pool
        idle = [pool.take() for _ in range(3)]
        for connection in idle:
            connection.opened = time.time()  # counts as new, also on a slow machine
            pool.give_back(connection)
        assert_unavailable(api.place())
        assert len(pool._idle) == 3
        for connection in idle:
            connection.opened -= MIN_RECONNECT_INTERVAL

        assert_unavailable(api.place())

        assert pool._idle == []
        assert all(connection.driver.closed for connection in idle)


def test_interrupted_order_leaves_no_rows(api: Client, own_server: Server, tenant: str) -> None:
    with ThreadPoolExecutor(1) as pool, locked_orders(own_server):
        placing = pool.submit(api.place, None, "one-key")
        until(lambda: has_lock_waiter(own_server))
        terminate_sessions(own_server)
        until(lambda: has_lock_waiter(own_server))  # the key made the retry safe
        terminate_sessions(own_server)
        assert_unavailable(placing.result())

    with connected(own_server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from idempotency_keys where tenant_id = %s", [tenant])
        assert cursor.fetchone() == (0,)
    assert api.place(key="one-key").status == 201
