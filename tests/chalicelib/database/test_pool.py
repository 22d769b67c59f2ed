"""The connection pool: its limits, and that it hands out no dead, expired or shared connection."""

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


def new_pool(
    database: Urls, max_idle: int = 2, max_open: int = 4, recycle: float = 60, timeout: float = 0.2
) -> Pool:
    def connect() -> Connection:
        return Connection(psycopg2.connect(database.app), prepares=True)

    return Pool(connect, max_idle=max_idle, max_open=max_open, recycle=recycle, timeout=timeout)


@contextmanager
def taken(pool: Pool) -> Iterator[Connection]:
    connection = pool.take()
    try:
        yield connection
    finally:
        pool.give_back(connection)


def next_pid(pool: Pool) -> int:
    """The backend pid of the next connection from the pool."""
    with taken(pool) as connection:
        return int(connection.driver.info.backend_pid)


def idle_count(pool: Pool, most: int) -> int:
    """How many of `most` connections taken at once were idle before."""
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

        assert idle_count(pool, most) == idle


def test_most_recently_used_connection_is_reused_first(database: Urls) -> None:
    pool = new_pool(database)
    first, second = pool.take(), pool.take()

    pool.give_back(first)
    pool.give_back(second)

    assert next_pid(pool) == second.driver.info.backend_pid
    pool.close()


def test_returned_connection_wakes_a_waiting_thread(database: Urls) -> None:
    pool = new_pool(database, max_open=1, timeout=10)
    only = pool.take()

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(next_pid, pool)
        time.sleep(0.1)
        assert not waiting.done()
        pool.give_back(only)
        assert waiting.result(timeout=5) == only.driver.info.backend_pid
    pool.close()


def test_wait_for_a_connection_ends_at_the_deadline(database: Urls) -> None:
    pool = new_pool(database, max_open=1, timeout=30)
    with taken(pool):
        started = time.monotonic()
        with pytest.raises(PoolExhausted):
            pool.take(0.1)

    assert time.monotonic() - started < 10
    pool.close()


def test_pool_replaces_a_connection_past_its_lifetime(database: Urls) -> None:
    pool = new_pool(database, recycle=0.5)
    first = next_pid(pool)
    assert next_pid(pool) == first

    time.sleep(0.6)

    assert next_pid(pool) != first
    pool.close()


def test_connection_closed_by_the_server_is_replaced(database: Urls, admin_url: str) -> None:
    pool = new_pool(database)
    first = next_pid(pool)

    with psycopg2.connect(admin_url) as admin, admin.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s, 5000)", (first,))

    assert next_pid(pool) != first
    pool.close()


def test_closed_connection_is_not_returned_to_the_pool(database: Urls) -> None:
    pool = new_pool(database)
    with taken(pool) as connection:
        connection.driver.close()

    assert pool._idle == []
    pool.close()


def test_connection_used_during_empty_is_closed_on_return(database: Urls) -> None:
    """It goes to the same server as the idle ones: one that was demoted or does not answer."""
    pool = new_pool(database)
    with taken(pool) as in_use:
        pool.empty()
        older = in_use.driver.info.backend_pid

    assert next_pid(pool) != older
    assert in_use.driver.closed
    assert idle_count(pool, 1) == 1
    pool.close()


def test_setting_the_clock_back_still_pools_connections(
    database: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool(database)
    pool.empty()
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: 0.0)
        first = next_pid(pool)

        assert next_pid(pool) == first
    pool.close()


def test_connection_opened_during_empty_is_closed_on_return(database: Urls) -> None:
    """Its host was resolved before empty() was called."""
    pool = new_pool(database)
    connect = pool._connect

    def connect_then_empty() -> Connection:
        connection = connect()
        pool.empty()
        return connection

    pool._connect = connect_then_empty
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
        raise psycopg2.OperationalError("connection refused")

    pool = Pool(refuse, max_idle=1, max_open=1, recycle=60, timeout=0.2)

    for _ in range(3):
        with pytest.raises(psycopg2.OperationalError):
            pool.take()


def test_closed_pool_closes_connections_as_they_return(database: Urls) -> None:
    pool = new_pool(database)
    idle, in_use = pool.take(), pool.take()
    pool.give_back(idle)

    pool.close()
    assert idle.driver.closed
    assert not in_use.driver.closed

    pool.give_back(in_use)
    assert in_use.driver.closed


def test_threads_never_share_a_connection(database: Urls) -> None:
    pool = new_pool(database, max_idle=2, max_open=4, timeout=10)
    held: set[int] = set()
    lock, shared = threading.Lock(), []

    def hold(_: int) -> None:
        with taken(pool) as connection:
            pid = connection.driver.info.backend_pid
            with lock:
                if pid in held:
                    shared.append(pid)
                held.add(pid)
            time.sleep(0.001)
            with lock:
                held.remove(pid)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(hold, range(600)))

    assert shared == []
    assert idle_count(pool, 4) == 2
    pool.close()
