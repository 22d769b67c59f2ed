"""The database goes away, comes back, is slow, is full: clients hear 503, and never wait for long."""

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
from chalicelib.database.pool import NEW
from local.database import apply_schema
from tests.conftest import NewClient
from tests.support.refusals import assert_unavailable
from tests.support.servers import READ_ONLY, api_on, private_server
from tests.support.waiting import until, within
from tools.client import Answer, Client, Transport
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

LONGEST_WAIT = 5.0
"""Seconds; a function's own timeout must never be what ends a request."""
IMPATIENT = "-c%20lock_timeout%3D0%20-c%20statement_timeout%3D300ms"


@pytest.fixture(scope="module")
def own_server(database: object) -> Iterator[Server]:  # noqa: ARG001 (as root it makes the server's user)
    with private_server() as server:
        apply_schema(server.urls.owner)
        yield server


@pytest.fixture
def api(own_server: Server, alice: Client) -> Iterator[Client]:
    """Alice of the API, which uses a server that a test may mistreat."""
    own_server.start_again()
    with api_on(own_server.urls.app):
        yield alice


@dataclass
class Customers:
    """Clients that go on asking, whatever they hear."""

    answers: list[Answer] = field(default_factory=list)
    slowest: float = 0.0
    keys: list[str] = field(default_factory=list)
    """Idempotency keys, each sent until it placed its order."""
    placed: list[str] = field(default_factory=list)
    """The orders whose placing was confirmed."""
    errors: list[BaseException] = field(default_factory=list)
    gone_home: threading.Event = field(default_factory=threading.Event)

    def ask(self, request: Callable[[], Answer]) -> Answer:
        started = time.monotonic()
        answer = request()
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.answers.append(answer)
        return answer

    def keep(self, asking: Callable[[], None]) -> None:
        try:
            while not self.gone_home.is_set():
                asking()
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
    them = Customers()
    askers = (
        lambda: them.place_once(client),
        lambda: them.place_once(client),
        lambda: void(them.ask(lambda: client.get("/orders?limit=5"))),
        lambda: void(them.ask(lambda: client.get("/orders/01936f3c-3b5e-7cc0-98c4-dc0c0c07398f"))),
        lambda: void(them.ask(client.place)),
    )
    threads = [threading.Thread(target=them.keep, args=(asking,)) for asking in askers]
    for thread in threads:
        thread.start()
    try:
        yield them
    finally:
        them.gone_home.set()
        for thread in threads:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in threads), "a request hangs"


def void(_answer: Answer) -> None:
    pass


def test_database_crash_causes_503s_until_it_restarts(
    api: Client, client: NewClient, http: Transport, own_server: Server
) -> None:
    def heard(status: int) -> bool:
        return any(answer.status == status for answer in them.answers)

    with customers(client(transport=http)) as them:
        until(lambda: len(them.placed) > 10)
        kill_while_requests_run(own_server)
        until(lambda: heard(503))
        assert_unavailable(api.get("/health/ready"))
        assert api.get("/health").status == 200
        own_server.start()
        until(lambda: api.get("/health/ready").status == 200)
        before = len(them.placed)
        until(lambda: len(them.placed) > before + 10)

    assert not them.errors
    assert {answer.status for answer in them.answers} == {200, 201, 404, 503}
    for answer in them.answers:
        if answer.status == 503:
            assert_unavailable(answer)
    assert them.slowest < LONGEST_WAIT
    assert len(set(them.placed)) == len(them.placed) == len(set(them.keys))
    assert all(api.get(f"/orders/{order_id}").status == 200 for order_id in them.placed)


def test_each_key_places_one_order_across_a_crash(
    api: Client, client: NewClient, http: Transport, own_server: Server, tenant: str
) -> None:
    with customers(client(transport=http)) as them:
        until(lambda: len(them.placed) > 5)
        kill_while_requests_run(own_server)
        own_server.start()
        before = len(them.placed)
        until(lambda: len(them.placed) > before + 5)

    with connected(own_server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select count(*), count(distinct order_id) from idempotency_keys"
            " join orders using (tenant_id, order_id) where tenant_id = %s",
            [tenant],
        )
        assert cursor.fetchone() == (len(them.keys), len(them.keys))
    assert api.get("/health/ready").status == 200


def kill_while_requests_run(server: Server) -> None:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("begin; lock table orders in access exclusive mode")
        until(lambda: waits_for_a_lock(server))
        server.kill()


def test_cut_idle_connections_cause_no_errors(
    api: Client, client: NewClient, http: Transport, own_server: Server
) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client(transport=http).get("/orders"), range(40)))
    assert cut(own_server) >= 1

    assert api.place().status == 201

    cut(own_server)
    assert api.get("/orders").status == 200
    cut(own_server)
    assert api.get("/health/ready").status == 200


def cut(server: Server) -> int:
    """Terminate the API's connections; how many there were."""
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select pid from pg_stat_activity where usename = 'orders_app'")
        processes = [process for (process,) in cursor.fetchall()]
        cursor.execute("select pg_terminate_backend(pid) from unnest(%s) as pid", [processes])

        def gone() -> bool:
            cursor.execute("select from pg_stat_activity where pid = any(%s)", [processes])
            return not cursor.fetchall()

        until(gone)
        return len(processes)


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
    """Somebody else holds the table of orders."""
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
    with api_on(f"{own_server.urls.app}&options={IMPATIENT}"):
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
            until(lambda: waits_for_a_lock(own_server))
            with within(1.5):
                assert_unavailable(api.get("/health/ready"))
        assert first.result().status == 200
        assert api.get("/orders").status == 200


def waits_for_a_lock(server: Server) -> bool:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_locks where not granted")
        return bool(cursor.fetchone() != (0,))


def test_read_is_retried_when_its_connection_breaks(api: Client, own_server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        with locked_orders(own_server):
            reading = pool.submit(api.get, "/orders")
            until(lambda: waits_for_a_lock(own_server))
            cut(own_server)
            until(lambda: waits_for_a_lock(own_server))

        assert reading.result().status == 200


def test_order_without_a_key_is_not_retried(api: Client, tenant: str, own_server: Server) -> None:
    with ThreadPoolExecutor(1) as pool, locked_orders(own_server):
        placing = pool.submit(api.place)
        until(lambda: waits_for_a_lock(own_server))
        cut(own_server)
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
    """As on a full disk: what another connection would find as well is asked on this one."""
    globex = client(tenant="globex")
    with (
        TemporaryDirectory(prefix="order-api-wire-") as folder,
        closing(Proxy(Path(folder), own_server.folder)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}&options={READ_ONLY}"),
        proxy.watched() as traffic,
    ):
        started = time.monotonic()
        for _ in range(40):
            assert_unavailable(api.place())
            assert globex.get("/orders").status == 200
        lasted = time.monotonic() - started

    assert traffic.messages.count("startup") <= 1 + lasted / NEW


def test_connections_to_a_demoted_primary_are_dropped(api: Client, own_server: Server) -> None:
    """Those at rest lead there too: the next request connects, where the settings lead to by now."""
    with api_on(f"{own_server.urls.app}&options={READ_ONLY}"):
        pool = connections().pool
        older = [pool.take() for _ in range(3)]
        for connection in older:
            connection.opened = time.time()  # on a slow machine too
            pool.give_back(connection)
        assert_unavailable(api.place())
        assert len(pool._idle) == 3
        for connection in older:
            connection.opened -= NEW

        assert_unavailable(api.place())

        assert pool._idle == []
        assert all(connection.driver.closed for connection in older)


def test_interrupted_order_leaves_no_rows(api: Client, own_server: Server, tenant: str) -> None:
    with ThreadPoolExecutor(1) as pool, locked_orders(own_server):
        placing = pool.submit(api.place, None, "one-key")
        until(lambda: waits_for_a_lock(own_server))
        cut(own_server)
        until(lambda: waits_for_a_lock(own_server))  # with a key it is safe to repeat, and so it was
        cut(own_server)
        assert_unavailable(placing.result())

    with connected(own_server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from idempotency_keys where tenant_id = %s", [tenant])
        assert cursor.fetchone() == (0,)
    assert api.place(key="one-key").status == 201
