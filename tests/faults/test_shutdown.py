"""SIGTERM, as every host sends it before it takes an instance away: what has begun is finished."""

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from local.database import apply_schema
from tests.faults.test_failover import until
from tests.support.servers import private_server
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
        apply_schema(server.urls.owner)
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
        placing = [pool.submit(place, number) for number in range(REQUESTS)]
        until(lambda: waiting(server) == REQUESTS)
        product.process.terminate()
        until(lambda: not is_served(product.port))
        late = pool.submit(place, REQUESTS)
        assert not any(each.done() for each in placing)
        cursor.execute("rollback")
        answers = [each.result() for each in placing]
        with pytest.raises(ConnectionError):  # gunicorn lets it connect, and hangs up at its end
            late.result()

    assert [answer.status for answer in answers] == [201] * REQUESTS
    acknowledged = {answer.json["order"]["order_id"] for answer in answers}
    assert {order_id for (order_id,) in rows(server, "select order_id::text from orders")} == acknowledged
    assert product.process.wait(10) == 0


def waiting(server: Server) -> int:
    ((waiting,),) = rows(server, "select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
    return int(waiting)


def is_served(port: int) -> bool:
    """Whether a new connection is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
