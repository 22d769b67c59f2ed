"""The proxy injects each armed fault once, and otherwise forwards everything."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest

from tests.support.servers import private_server
from tools.network_faults import AnswerFault
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected
from tools.soak.soak_environment import url

pytestmark = pytest.mark.slow
INSERT = "insert into told values (1)"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with private_server() as server:
        with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("create role orders_app login; create table told (n integer)")
            cursor.execute("grant all on told to orders_app")
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(None, server.folder, parses=False)
    yield proxy
    proxy.close()


@pytest.fixture
def cursor(proxy: Proxy) -> Iterator[Any]:
    with connected(url(proxy.port)) as connection:
        yield connection.cursor()


def take_rows(server: Server) -> int:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("with gone as (delete from told returning n) select count(*) from gone")
        (count,) = cursor.fetchone()
        return int(count)


def test_unarmed_proxy_forwards_everything(server: Server, cursor: Any) -> None:
    cursor.execute(INSERT)
    cursor.execute("select repeat('x', 1000000)")

    assert len(cursor.fetchone()[0]) == 1_000_000
    assert take_rows(server) == 1


def test_write_cut_after_commit_is_committed(server: Server, proxy: Proxy, cursor: Any) -> None:
    proxy.faults.arm(AnswerFault.CUT_AFTER_COMMIT, 1)
    cursor.execute("select 1")  # not a write: no fault
    with pytest.raises(psycopg2.OperationalError):
        cursor.execute(INSERT)

    assert take_rows(server) == 1
    assert proxy.faults.injected == {AnswerFault.CUT_AFTER_COMMIT: 1}
    assert proxy.faults.armed() == 0


@pytest.mark.parametrize("fault", [AnswerFault.TRUNCATE, AnswerFault.RESET])
def test_truncated_or_reset_response_breaks_the_connection(
    proxy: Proxy, cursor: Any, fault: AnswerFault
) -> None:
    proxy.faults.arm(fault, 1)

    with pytest.raises(psycopg2.OperationalError):
        cursor.execute("select 1")

    assert proxy.faults.injected == {fault: 1}
    with connected(url(proxy.port)):
        pass


def test_reset_all_breaks_every_connection(proxy: Proxy, cursor: Any) -> None:
    with connected(url(proxy.port)):
        assert proxy.reset_all() == 2

    with pytest.raises(psycopg2.OperationalError):
        cursor.execute("select 1")


def test_swallowed_response_never_arrives(server: Server, proxy: Proxy, cursor: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        proxy.faults.arm(AnswerFault.SWALLOW, 1)
        query = pool.submit(cursor.execute, INSERT)
        time.sleep(0.5)
        assert not query.done()
        assert take_rows(server) == 1
        proxy.reset_all()
        with pytest.raises(psycopg2.OperationalError):
            query.result(10)


def test_stalled_query_arrives_later(server: Server, proxy: Proxy, cursor: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        with proxy.stalled():
            query = pool.submit(cursor.execute, INSERT)
            time.sleep(0.3)
            assert take_rows(server) == 0
        query.result(10)

    assert take_rows(server) == 1


def test_delayed_response_arrives_late(proxy: Proxy, cursor: Any) -> None:
    proxy.delay = 0.3
    started = time.monotonic()

    cursor.execute("select 1")

    assert time.monotonic() - started > 0.3


def test_proxy_refuses_clients_without_a_server(server: Server, proxy: Proxy, cursor: Any) -> None:
    server.kill()
    with pytest.raises(psycopg2.OperationalError):
        cursor.execute("select 1")
    with pytest.raises(psycopg2.OperationalError), connected(url(proxy.port)):
        pass

    server.start()
    with connected(url(proxy.port)):
        pass
