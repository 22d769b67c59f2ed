"""Requests are bounded: DB_READ_TIMEOUT for an unresponsive database, the host's deadline for all of it."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psutil
import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from chalicelib.caller import Caller
from chalicelib.composition import connections
from chalicelib.database.errors import NoAnswer
from chalicelib.database.pool import Connection
from chalicelib.database.read_timeout import ReadTimeout
from chalicelib.database.statement import Statement
from chalicelib.errors import Unavailable
from chalicelib.orders.repository import OrderRepository
from chalicelib.orders.statements import ORDER_BY_ID
from chalicelib.settings.table import SETTINGS
from local.database import Urls
from tests.conftest import NewClient
from tests.support.builds import PROJECT
from tests.support.cognito import UserPool
from tests.support.refusals import assert_unavailable
from tests.support.servers import api_on, scope_of
from tests.support.waiting import within
from tools.client import Answer, Client
from tools.postgres_proxy import Proxy
from tools.postgres_server import connected

ONE_SECOND = {"DB_READ_TIMEOUT": "1", "DB_POOL_TIMEOUT": "1"}


@contextmanager
def suspended_backends(admin_url: str) -> Iterator[None]:
    """Stops the backends of the API's connections with SIGSTOP: TCP stays up, no answer comes."""
    with connected(admin_url) as admin, admin.cursor() as cursor:
        cursor.execute("select pid from pg_stat_activity where usename = 'orders_app'")
        processes = [psutil.Process(pid) for (pid,) in cursor.fetchall()]
    assert processes
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@pytest.mark.parametrize("request_", ["place", "place with a key", "list", "ready"])
def test_silent_server_times_out_with_503(
    alice: Client, database: Urls, admin_url: str, request_: str
) -> None:
    requests: dict[str, Callable[[], Answer]] = {
        "place": alice.place,
        "place with a key": lambda: alice.place(key=uuid4().hex),
        "list": lambda: alice.get("/orders"),
        "ready": lambda: alice.get("/health/ready"),
    }
    with api_on(database.app, **ONE_SECOND):
        pool = connections().pool
        for connection in [pool.take() for _ in range(3)]:
            pool.give_back(connection)

        with suspended_backends(admin_url):
            with within(5):
                answer = requests[request_]()
            assert_unavailable(answer)
            assert alice.get("/orders").status == 200, "on a new connection: the idle ones were dropped"

    assert ("it is not known whether" in answer.json["detail"]) == (request_ == "place")


def test_retry_with_key_replays_a_timed_out_order(
    alice: Client, database: Urls, tenant: str, rows: Any
) -> None:
    """The server commits, its answer is dropped, and the retry with the key replays the order."""
    sockets, key = Path(parse_dsn(database.app)["host"]), uuid4().hex
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}", **ONE_SECOND),
    ):
        assert alice.get("/orders").status == 200
        proxy.drops_answers = True
        assert_unavailable(alice.place(key=key))
        proxy.drops_answers = False

        answer = alice.place(key=key)

    assert (answer.status, answer.headers["idempotent-replayed"]) == (201, "true")
    assert rows("select count(*) from orders where tenant_id = %s", tenant) == [(1,)]


def test_many_concurrent_timeouts_leak_no_connection(
    client: NewClient, database: Urls, admin_url: str
) -> None:
    with api_on(database.app, **ONE_SECOND, DB_POOL_SIZE="8", DB_POOL_MAX="8"), ThreadPoolExecutor(8) as pool:
        clients = [client(tenant=f"silent-{n}") for n in range(8)]
        list(pool.map(lambda api_client: api_client.get("/orders"), clients * 4))
        with suspended_backends(admin_url), within(12):
            statuses = list(pool.map(lambda api_client: api_client.get("/orders").status, clients * 2))

        assert 503 in statuses
        assert {api_client.get("/orders").status for api_client in clients} == {200}
        assert len(connections().pool._idle) <= 8
        assert not connections().read_timeout._due


def test_slow_answer_within_the_read_timeout_succeeds(database: Urls) -> None:
    slow = Statement("select pg_sleep(0.8) is null", None)
    with api_on(database.app, DB_READ_TIMEOUT="3"):
        for _ in range(5):
            assert scope_of("acme").read(slow) == [(False,)]


# The host's deadline

BOUND = 4.5
"""Seconds in which a request with a deadline of 3 ends on a busy machine; other timeouts are 5 and 8."""


def test_host_deadline_shortens_statement_timeout(database: Urls) -> None:
    """Only when the deadline is near is the server's own statement_timeout shortened to end before it."""
    timeout = Statement("select current_setting('statement_timeout')", None)
    with api_on(database.app):
        assert scope_of("acme", time.monotonic() + 30).read(timeout) == [("5s",)]
        ((text,),) = scope_of("acme", time.monotonic() + 4).read(timeout)
        assert scope_of("acme", time.monotonic() + 30).read(timeout) == [("5s",)], "one transaction only"
        assert scope_of("acme", time.monotonic() + 8).read(timeout) == [("5s",)], "it is never lengthened"

    assert text.endswith("ms")
    assert 1500 < int(text.removesuffix("ms")) <= 3100


def test_statement_times_out_before_the_host_deadline(database: Urls) -> None:
    with api_on(database.app):
        started = time.monotonic()
        with pytest.raises(Unavailable) as error:
            scope_of("acme", started + 3).read(Statement("select pg_sleep(6)", None))

    assert time.monotonic() - started < BOUND
    assert type(error.value) is Unavailable, "the server cancelled it: not an unknown outcome"


@pytest.mark.parametrize("prepare", ["on", "off"])
def test_host_deadline_bounds_a_new_connections_first_query(
    database: Urls, admin_url: str, prepare: str
) -> None:
    """The role check and PREPARE wait for a locked table too."""
    scope = scope_of("acme", time.monotonic() + 2)
    with api_on(database.app, DB_PREPARE=prepare), psycopg2.connect(admin_url) as admin:
        admin.cursor().execute("lock table orders in access exclusive mode")

        with pytest.raises(Unavailable) as error:
            scope.write((ORDER_BY_ID, [{"order_id": str(uuid4())}]))

        admin.rollback()
    assert type(error.value) is Unavailable, "the server cancelled it: not an unknown outcome"


def test_read_timeout_is_logged_as_no_answer(
    database: Urls, admin_url: str, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """libpq alone would report a connection closed by the server."""
    with api_on(database.app, **ONE_SECOND):
        assert alice.get("/orders").status == 200
        with suspended_backends(admin_url):
            assert_unavailable(alice.get("/orders"))

    assert caplog.messages[0].startswith("database unavailable: no answer came in time (DB_READ_TIMEOUT")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_datestyle_adds_no_unbounded_round_trip(
    database: Urls, admin_url: str, alice: Client, method: str
) -> None:
    """psycopg2 would send SET datestyle inside connect(), without a read timeout."""
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), Path(parse_dsn(database.app)["host"]))) as proxy,
        connected(admin_url) as admin,
        admin.cursor() as cursor,
    ):
        cursor.execute("alter role orders_app set datestyle = 'German, DMY'")
        try:
            with (
                api_on(f"postgresql://orders_app@/orders?host={folder}"),
                proxy.watched() as traffic,
            ):
                answer = alice.place() if method == "POST" else alice.get("/orders")
        finally:
            cursor.execute("alter role orders_app reset datestyle")

    assert answer.status == (201 if method == "POST" else 200)
    assert [kind for kind in traffic.messages if kind != "X"] == ["startup", "Q"]


def test_silent_server_times_out_before_the_host_deadline(
    database: Urls, admin_url: str, alice: Client
) -> None:
    with api_on(database.app):
        assert alice.get("/orders").status == 200
        with suspended_backends(admin_url):
            started = time.monotonic()
            with pytest.raises(NoAnswer):
                OrderRepository(Caller("acme", "alice"), scope_of("acme", started + 3)).get(str(uuid4()))

    assert 2 < time.monotonic() - started < BOUND


def test_near_deadline_timeout_keeps_idle_connections(database: Urls, admin_url: str) -> None:
    """Less than DB_READ_TIMEOUT does not prove the server unresponsive, so idle connections stay."""
    with api_on(database.app):
        pool = connections().pool
        for connection in [pool.take() for _ in range(3)]:
            pool.give_back(connection)
        with suspended_backends(admin_url), pytest.raises(NoAnswer):
            scope_of("acme", time.monotonic() + 1.5).read(Statement("select 1", None))

        assert len(pool._idle) == 2


def test_no_query_is_sent_after_the_deadline(database: Urls) -> None:
    scope = scope_of("acme", time.monotonic() + 0.1)
    with api_on(database.app), pytest.raises(Unavailable):
        scope.read(Statement("select 1", None))


def test_lambda_remaining_time_becomes_the_deadline(
    app: Any, alice: Client, database: Urls, admin_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        def get_remaining_time_in_millis(self) -> int:
            return 3000

    with api_on(database.app):
        assert alice.get("/orders").status == 200
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "order-api")
        # An earlier test may have imported it.
        monkeypatch.delitem(sys.modules, "chalice.local", raising=False)
        with suspended_backends(admin_url), within(BOUND):
            answer = app(list_event(), Context())

    assert answer["statusCode"] == 503


def list_event() -> dict[str, Any]:
    """GET /orders in API Gateway's format."""
    return {
        "path": "/orders",
        "httpMethod": "GET",
        "headers": {},
        "pathParameters": None,
        "multiValueQueryStringParameters": None,
        "stageVariables": None,
        "requestContext": {
            "resourcePath": "/orders",
            "httpMethod": "GET",
            "requestId": "1",
            "authorizer": {"claims": {"custom:tenant_id": "acme", "sub": "alice"}},
        },
        "body": None,
        "isBase64Encoded": False,
    }


def test_gateway_passes_the_host_deadline_on(
    app: Any, database: Urls, admin_url: str, alice: Client, user_pool: UserPool
) -> None:
    from shims.gateway import Gateway, Request, deadline

    deadline_time = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
    with api_on(database.app):
        assert alice.get("/orders").status == 200
        headers = {"authorization": user_pool.token("acme")}
        with suspended_backends(admin_url), within(BOUND):
            request = Request("GET", "/orders", headers, b"", deadline=deadline(deadline_time))
            answer = Gateway(app).handle(request)

    assert answer.status == 503


@pytest.mark.parametrize("target", ["/orders", "/health/ready"])
def test_host_deadline_applies_to_protected_and_public_routes(
    app: Any, user_pool: UserPool, target: str
) -> None:
    from shims.gateway import Gateway, Request

    gateway, headers = Gateway(app), {"authorization": user_pool.token("acme")}

    def status(seconds: float) -> int:
        return gateway.handle(
            Request("GET", target, headers, b"", deadline=time.monotonic() + seconds)
        ).status

    assert [status(seconds) for seconds in (20, 0.1, -5)] == [200, 503, 503]
    assert gateway.handle(Request("GET", "/health", {}, b"", deadline=time.monotonic() - 5)).status == 200


@pytest.mark.parametrize("timestamp", ["", "soon", "2026-13-45T00:00:00Z", "12"])
def test_a_malformed_deadline_sets_no_limit(app: Any, timestamp: str) -> None:  # noqa: ARG001 (it is set up)
    from shims.gateway import deadline

    assert deadline(timestamp) is None


def test_each_timeout_is_shorter_than_the_one_around_it() -> None:
    """Statement < read < function < gateway: the innermost timeout reports the most precise error."""
    statement = 5
    assert f"statement_timeout = '{statement}s'" in (PROJECT / "schema.sql").read_text()
    read = int(SETTINGS["DB_READ_TIMEOUT"].default)
    azure = json.loads((PROJECT / "shims/azure/host.json").read_text())["functionTimeout"]
    oracle = re.search(r"^timeout: (\d+)$", (PROJECT / "shims/oci/func.yaml").read_text(), re.MULTILINE)
    google = set(re.findall(r'"--timeout", "(\d+)s?"', (PROJECT / "deploy/hosts.py").read_text()))
    functions = [
        json.loads((PROJECT / ".chalice/config.json").read_text())["lambda_timeout"],
        *(int(seconds) for seconds in (azure.rpartition(":")[2], oracle and oracle[1], *google)),
    ]

    assert statement < read < min(functions)
    assert functions[0] < 29, "API Gateway gives up after 29 seconds"


# The timeout itself


def test_each_connection_has_its_own_read_timeout(database: Urls) -> None:
    timeout, soon, late, never = ReadTimeout(), *(new_connection(database) for _ in range(3))
    timeout.start(late, 2)
    timeout.start(soon, 0.2)
    timeout.start(never, 60)

    time.sleep(1)
    assert (soon.timed_out, late.timed_out, never.timed_out) == (True, False, False)
    time.sleep(2)
    assert (soon.timed_out, late.timed_out, never.timed_out) == (True, True, False)

    for connection in (soon, late, never):
        timeout.stop(connection)
        connection.close()
    assert not timeout._due


def test_read_timeout_can_be_started_again(database: Urls) -> None:
    timeout, connection = ReadTimeout(), new_connection(database)
    timeout.start(connection, 0.2)
    timeout.stop(connection)
    time.sleep(0.5)

    timeout.start(connection, 0.2)
    time.sleep(1)

    assert connection.timed_out
    connection.close()


def test_read_timeout_ignores_a_reused_file_descriptor(database: Urls) -> None:
    """libpq may close its descriptor while the timer runs, and the number is then reused."""
    timeout, connection = ReadTimeout(), new_connection(database)
    number = connection.driver.fileno()
    timeout.start(connection, 1)
    connection.driver.close()
    other = new_connection(database)
    assert other.driver.fileno() == number

    time.sleep(2)

    assert connection.timed_out
    assert not other.is_dead()
    timeout.stop(connection)
    connection.close()
    other.close()


def new_connection(database: Urls) -> Connection:
    return Connection(psycopg2.connect(database.app), prepares=False)
