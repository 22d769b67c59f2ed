"""SIGTERM, which hosts send before they stop an instance: requests in flight are finished."""

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from migrations.migrate import migrate
from tests.support.servers import private_server
from tests.support.waiting import until
from tools.client import Answer, Client, over_http
from tools.postgres_server import Server, connected
from tools.soak.soak_environment import Door, TokenIssuer, door, rows, token_issuer

pytestmark = pytest.mark.slow
REQUESTS = 4


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenIssuer]:
    with token_issuer(tmp_path) as tokens:
        yield tokens


@pytest.fixture
def server() -> Iterator[Server]:
    with private_server() as server:
        migrate(server.urls.owner)
        rows(server, "alter role orders_app set lock_timeout = '0'")
        rows(server, "alter role orders_app set statement_timeout = '0'")
        yield server


@pytest.fixture
def product(server: Server, tokens: TokenIssuer, tmp_path: Path) -> Iterator[Door]:
    variables = {**tokens.variables, "DATABASE_URL": server.urls.app, "DB_READ_TIMEOUT": "30"}
    with door(tmp_path / "product", variables, workers=2) as product:
        yield product


def test_sigterm_finishes_requests_in_flight_and_accepts_none(
    server: Server, product: Door, tokens: TokenIssuer
) -> None:
    customer = Client(over_http("127.0.0.1", product.port), tokens.token("acme", "alice"))

    def place(number: int) -> Answer:
        return customer.place(key=f"order-{number}")

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(REQUESTS + 1))
        cursor = stack.enter_context(connected(server.url("postgres"))).cursor()
        cursor.execute("begin; lock table orders in access exclusive mode")
        futures = [pool.submit(place, number) for number in range(REQUESTS)]
        until(lambda: lock_waits(server) == REQUESTS)
        product.process.terminate()
        until(lambda: not is_served(product.port))
        rejected = pool.submit(place, REQUESTS)
        assert not any(future.done() for future in futures)
        cursor.execute("rollback")
        answers = [future.result() for future in futures]
        with pytest.raises(ConnectionError):  # gunicorn accepts the connection and closes it when it exits
            rejected.result()

    assert [answer.status for answer in answers] == [201] * REQUESTS
    acknowledged = {answer.json["order"]["order_id"] for answer in answers}
    assert {order_id for (order_id,) in rows(server, "select order_id::text from orders")} == acknowledged
    assert product.process.wait(10) == 0


def lock_waits(server: Server) -> int:
    ((lock_waits,),) = rows(server, "select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
    return int(lock_waits)


def is_served(port: int) -> bool:
    """Whether a new connection gets an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
