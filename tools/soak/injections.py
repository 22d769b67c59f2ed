"""The faults: each is injected under load, repaired, and returns the time of the repair."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg2

from tools.network_faults import AnswerFault
from tools.postgres_server import connected
from tools.soak.soak_environment import SoakEnvironment

HIT_TIMEOUT = 10
"""Seconds in which a fault must find a target."""
START_TIMEOUT = 60
"""Seconds in which PostgreSQL must have recovered from its log."""


@dataclass(frozen=True)
class Injected:
    """What a fault hit, and when (time.monotonic()) it was repaired."""

    repaired_at: float
    hits: int = 1
    """Affected processes, connections or answers; 0 if there was none."""


def kill_backend(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """SIGKILL to one of the API's backends: PostgreSQL ends all others and recovers from its WAL."""

    def kill_one() -> bool:
        with (
            suppress(psycopg2.Error),
            connected(environment.server.url("postgres")) as witness,
            witness.cursor() as cursor,
        ):
            cursor.execute("select pid from pg_stat_activity where usename = 'orders_app'")
            return _kill_one([pid for (pid,) in cursor.fetchall()], rng) and _is_ended(cursor)
        return False

    hits = _until(kill_one)
    return Injected(wait_for_database(environment), hits)


def _kill_one(pids: Sequence[int], rng: random.Random) -> bool:
    """Returns False when the chosen process has already ended."""
    with suppress(psutil.NoSuchProcess, IndexError):
        process = psutil.Process(rng.choice(pids))
        if process.status() != psutil.STATUS_ZOMBIE:
            process.kill()
            return True
    return False


def _is_ended(cursor: Any) -> bool:
    """Whether PostgreSQL ends this session too, as it does after a backend was killed."""
    deadline = time.monotonic() + HIT_TIMEOUT / 2
    with suppress(psycopg2.Error):
        while time.monotonic() < deadline:
            cursor.execute("select 1")
            time.sleep(0.02)
        return False
    return True


def kill_server(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """SIGKILL to every process of PostgreSQL; it is down for up to a second, and started again."""
    environment.server.kill()
    time.sleep(rng.random())
    environment.server.start()
    return Injected(wait_for_database(environment))


def kill_worker(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """SIGKILL to a process of the API in the middle of its requests; gunicorn starts another."""
    # Half of the delay is on the way back: some requests are then committed, but not answered.
    environment.proxy.delay = 0.4
    time.sleep(0.3)
    hits = _until(lambda: _kill_one([worker.pid for worker in environment.product.workers()], rng))
    environment.proxy.delay = 0
    return Injected(time.monotonic(), hits)


def delay(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """Every answer of the database is delayed."""
    environment.proxy.delay = rng.uniform(0.05, 0.3)
    time.sleep(rng.uniform(0.5, 1.5))
    environment.proxy.delay = 0
    return Injected(time.monotonic())


def stall(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """No data passes between API and database for a while; connections stay open."""
    with environment.proxy.stalled():
        time.sleep(rng.uniform(0.3, 2))
    return Injected(time.monotonic())


def reset_all(environment: SoakEnvironment, _: random.Random) -> Injected:
    """Every connection to the database is reset at once."""
    hits = _until(environment.proxy.reset_all)
    return Injected(time.monotonic(), hits)


def truncate(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """Answers are cut off in the middle."""
    return _inject(environment, AnswerFault.TRUNCATE, rng.randint(1, 8))


def reset(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """Connections are reset instead of answers."""
    return _inject(environment, AnswerFault.RESET, rng.randint(1, 8))


def cut_after_commit(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """Orders are committed, and their answers are lost."""
    return _inject(environment, AnswerFault.CUT_AFTER_COMMIT, rng.randint(6, 12))


def swallow(environment: SoakEnvironment, rng: random.Random) -> Injected:
    """The database never answers again on a few connections, which stay open.

    On three at once at most: each holds a thread until DB_READ_TIMEOUT, and a worker has four.
    """
    _until(lambda: not environment.proxy.silent_connections())
    return _inject(environment, AnswerFault.SWALLOW, rng.randint(1, 3))


Fault = Callable[[SoakEnvironment, random.Random], Injected]
KILLS: tuple[Fault, ...] = (kill_backend, kill_server, kill_worker)
NETWORK: tuple[Fault, ...] = (delay, stall, reset_all, truncate, reset, cut_after_commit, swallow)


def fault_name(fault: Fault) -> str:
    return fault.__name__.replace("_", " ")


def wait_for_database(environment: SoakEnvironment) -> float:
    """The time.monotonic() at which it accepts connections. Raises AssertionError after START_TIMEOUT."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(psycopg2.Error), connected(environment.server.url("postgres")):
            return time.monotonic()
        time.sleep(0.02)
    raise AssertionError(f"PostgreSQL is not back after {START_TIMEOUT} s")


def restart_database(environment: SoakEnvironment) -> None:
    """Start PostgreSQL after an interrupted fault; retried: a killed one counts as running for a moment."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        environment.server.start_again()
        with suppress(psycopg2.Error), connected(environment.server.url("postgres")):
            return
        time.sleep(0.1)
    raise AssertionError(f"PostgreSQL is not back after {START_TIMEOUT} s")


def _until(hit: Callable[[], int]) -> int:
    """The number of hits, as soon as there is one; 0 after HIT_TIMEOUT."""
    deadline = time.monotonic() + HIT_TIMEOUT
    while not (hits := hit()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return hits


def _inject(environment: SoakEnvironment, fault: AnswerFault, answers: int) -> Injected:
    before = environment.proxy.faults.injected[fault]
    environment.proxy.faults.arm(fault, answers)
    _until(lambda: not environment.proxy.faults.armed())
    environment.proxy.faults.disarm()
    return Injected(time.monotonic(), environment.proxy.faults.injected[fault] - before)
