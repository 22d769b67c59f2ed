"""The pool of connections: its limits, and that no request gets one that is dead, old or somebody else's."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg2
import pytest

from chalicelib.composition import connections
from chalicelib.database.pool import Connection, Pool, PoolExhausted
from local.database import Urls
from tests.support.servers import api_on


def new_pool(database: Urls, idle: int = 2, most: int = 4, recycle: float = 60, timeout: float = 0.2) -> Pool:
    def connect() -> Connection:
        return Connection(psycopg2.connect(database.app), prepares=True)

    return Pool(connect, idle=idle, most=most, recycle=recycle, timeout=timeout)


@contextmanager
def taken(pool: Pool) -> Iterator[Connection]:
    connection = pool.take()
    try:
        yield connection
    finally:
        pool.give_back(connection)


def process_of(pool: Pool) -> int:
    """The server's process behind the connection that comes next."""
    with taken(pool) as connection:
        return int(connection.driver.info.backend_pid)


def at_rest(pool: Pool, most: int) -> int:
    """How many of the connections that are taken at once were open before."""
    with ExitStack() as in_use:
        opened = time.time()
        return sum(in_use.enter_context(taken(pool)).opened < opened for _ in range(most))


@pytest.mark.parametrize(
    ("variables", "idle", "most"), [({}, 5, 25), ({"DB_POOL_SIZE": "2", "DB_POOL_MAX": "3"}, 2, 3)]
)
def test_pool_enforces_idle_and_maximum_size(
    database: Urls, variables: dict[str, str], idle: int, most: int
) -> None:
    with api_on(database.app, DB_POOL_TIMEOUT="1", **variables):
        pool = connections().pool
        with ExitStack() as in_use:
            for _ in range(most):
                in_use.enter_context(taken(pool))
            with pytest.raises(PoolExhausted):
                pool.take()

        assert at_rest(pool, most) == idle


def test_most_recently_used_connection_is_reused_first(database: Urls) -> None:
    pool = new_pool(database)
    first, second = pool.take(), pool.take()

    pool.give_back(first)
    pool.give_back(second)

    assert process_of(pool) == second.driver.info.backend_pid
    pool.close()


def test_returned_connection_wakes_a_waiting_thread(database: Urls) -> None:
    pool = new_pool(database, most=1, timeout=10)
    only = pool.take()

    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(process_of, pool)
        time.sleep(0.1)
        assert not waiting.done()
        pool.give_back(only)
        assert waiting.result(timeout=5) == only.driver.info.backend_pid
    pool.close()


def test_wait_for_a_connection_ends_at_the_deadline(database: Urls) -> None:
    pool = new_pool(database, most=1, timeout=30)
    with taken(pool):
        started = time.monotonic()
        with pytest.raises(PoolExhausted):
            pool.take(0.1)

    assert time.monotonic() - started < 10
    pool.close()


def test_pool_replaces_a_connection_past_its_lifetime(database: Urls) -> None:
    pool = new_pool(database, recycle=0.5)
    first = process_of(pool)
    assert process_of(pool) == first

    time.sleep(0.6)

    assert process_of(pool) != first
    pool.close()


def test_connection_closed_by_the_server_is_replaced(database: Urls, admin_url: str) -> None:
    pool = new_pool(database)
    first = process_of(pool)

    with psycopg2.connect(admin_url) as admin, admin.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s, 5000)", (first,))

    assert process_of(pool) != first
    pool.close()


def test_closed_connection_is_not_returned_to_the_pool(database: Urls) -> None:
    pool = new_pool(database)
    with taken(pool) as connection:
        connection.driver.close()

    assert pool._idle == []
    pool.close()


def test_connection_used_during_empty_is_closed_on_return(database: Urls) -> None:
    """It leads to where those at rest led: to a server that is the primary no more, or is silent."""
    pool = new_pool(database)
    with taken(pool) as in_use:
        pool.empty()
        older = in_use.driver.info.backend_pid

    assert process_of(pool) != older
    assert in_use.driver.closed
    assert at_rest(pool, 1) == 1
    pool.close()


def test_setting_the_clock_back_still_pools_connections(
    database: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool(database)
    pool.empty()
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: 0.0)
        first = process_of(pool)

        assert process_of(pool) == first
    pool.close()


def test_connection_opened_during_empty_is_closed_on_return(database: Urls) -> None:
    """Where it leads was decided before."""
    pool = new_pool(database)
    connect = pool._connect

    def meanwhile() -> Connection:
        connection = connect()
        pool.empty()
        return connection

    pool._connect = meanwhile
    with taken(pool) as connection:
        pass

    assert connection.driver.closed
    pool.close()


def test_interrupted_request_closes_its_connection(database: Urls) -> None:
    def interrupted(connection: Connection, cursor: Any) -> tuple[bytes, bytes]:
        used.append(connection)
        cursor.execute("select 1")
        raise KeyboardInterrupt

    used: list[Connection] = []
    with api_on(database.app, DB_POOL_MAX="1", DB_POOL_SIZE="1", DB_POOL_TIMEOUT="1"):
        with pytest.raises(KeyboardInterrupt):
            connections().send(interrupted)

        assert used[0].driver.closed
        connections().ping()


def test_failed_connect_frees_its_pool_slot() -> None:
    def refuse() -> Connection:
        raise psycopg2.OperationalError("nobody listens")

    pool = Pool(refuse, idle=1, most=1, recycle=60, timeout=0.2)

    for _ in range(3):
        with pytest.raises(psycopg2.OperationalError):
            pool.take()


def test_closed_pool_closes_connections_as_they_return(database: Urls) -> None:
    pool = new_pool(database)
    resting, in_use = pool.take(), pool.take()
    pool.give_back(resting)

    pool.close()
    assert resting.driver.closed
    assert not in_use.driver.closed

    pool.give_back(in_use)
    assert in_use.driver.closed


def test_threads_never_share_a_connection(database: Urls) -> None:
    pool = new_pool(database, idle=2, most=4, timeout=10)
    held: set[int] = set()
    lock, shared = threading.Lock(), []

    def hold(_: int) -> None:
        with taken(pool) as connection:
            process = connection.driver.info.backend_pid
            with lock:
                if process in held:
                    shared.append(process)
                held.add(process)
            time.sleep(0.001)
            with lock:
                held.remove(process)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(hold, range(600)))

    assert shared == []
    assert at_rest(pool, 4) == 2
    pool.close()
