"""The faults: each is injected under load, and tells when what was broken is whole again."""

import random
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import psycopg2

from tests.conftest import connected
from tests.faults.proxy import Shot
from tests.faults.stage import Stage

LONGEST_FAULT = 10
"""Seconds in which shots that are armed must have hit."""


def kill_backend(stage: Stage, chance: random.Random) -> float:
    """SIGKILL to one of the API's server processes: PostgreSQL ends all others and recovers from its log."""
    with connected(stage.server.url("postgres")) as witness, witness.cursor() as cursor:
        cursor.execute("select pid from pg_stat_activity where usename = 'orders_app'")
        backends = [pid for (pid,) in cursor.fetchall()]
        if backends:
            psutil.Process(chance.choice(backends)).kill()
            with suppress(psycopg2.Error):
                while True:
                    cursor.execute("select 1")
                    time.sleep(0.02)
    return database_is_back(stage)


def kill_server(stage: Stage, chance: random.Random) -> float:
    """SIGKILL to every process of PostgreSQL; it is down for up to a second, and started again."""
    stage.server.kill()
    time.sleep(chance.random())
    stage.server.start()
    return database_is_back(stage)


def kill_worker(stage: Stage, chance: random.Random) -> float:
    """SIGKILL to a process of the API in the middle of its requests; gunicorn starts another."""
    stage.proxy.delay = 0.2  # so that there are some that the database has answered already
    time.sleep(0.3)
    chance.choice(stage.product.workers()).kill()
    stage.proxy.delay = 0
    return time.monotonic()


def delay(stage: Stage, chance: random.Random) -> float:
    """Every answer of the database comes late."""
    stage.proxy.delay = chance.uniform(0.05, 0.3)
    time.sleep(chance.uniform(0.5, 1.5))
    stage.proxy.delay = 0
    return time.monotonic()


def stall(stage: Stage, chance: random.Random) -> float:
    """Nothing moves between API and database for a while, and nobody hangs up."""
    with stage.proxy.stalled():
        time.sleep(chance.uniform(0.3, 2))
    return time.monotonic()


def reset_all(stage: Stage, _: random.Random) -> float:
    """Every connection to the database is reset at once."""
    stage.proxy.reset_all()
    return time.monotonic()


def truncate(stage: Stage, chance: random.Random) -> float:
    """Answers end in their middle."""
    return _shoot(stage, Shot.TRUNCATE, chance.randint(1, 8))


def reset(stage: Stage, chance: random.Random) -> float:
    """Connections are reset in the place of answers."""
    return _shoot(stage, Shot.RESET, chance.randint(1, 8))


def cut_after_commit(stage: Stage, chance: random.Random) -> float:
    """Orders are committed, and nobody hears of it."""
    return _shoot(stage, Shot.CUT_AFTER_COMMIT, chance.randint(6, 12))


def swallow(stage: Stage, chance: random.Random) -> float:
    """The database falls silent on a few connections, for good, and nobody hangs up."""
    return _shoot(stage, Shot.SWALLOW, chance.randint(1, 3))


Fault = Callable[[Stage, random.Random], float]
"""Injects it, and returns the moment (of time.monotonic) at which what was broken was whole again."""
KILLS: tuple[Fault, ...] = (kill_backend, kill_server, kill_worker)
NETWORK: tuple[Fault, ...] = (delay, stall, reset_all, truncate, reset, cut_after_commit, swallow)


def said(fault: Fault) -> str:
    return fault.__name__.replace("_", " ")


def database_is_back(stage: Stage) -> float:
    while True:
        with suppress(psycopg2.Error), connected(stage.server.url("postgres")):
            return time.monotonic()
        time.sleep(0.02)


def _shoot(stage: Stage, shot: Shot, answers: int) -> float:
    stage.proxy.arm(shot, answers)
    deadline = time.monotonic() + LONGEST_FAULT
    while stage.proxy.armed() and time.monotonic() < deadline:
        time.sleep(0.01)
    stage.proxy.disarm()
    return time.monotonic()
