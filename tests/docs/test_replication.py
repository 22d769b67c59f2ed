"""docs/moving.md, Too large for minutes: from release 1.0.0's schema to this release's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from migrations.migrate import migrate
from tests.docs.test_moving import TABLES, Move
from tests.support.release_1 import apply_release_1
from tests.support.servers import api_on, private_server
from tests.support.waiting import until
from tools.client import Answer, Client
from tools.postgres_server import connected

pytestmark = pytest.mark.slow

SECTION = "Too large for minutes"


@pytest.fixture
def move(tmp_path: Path) -> Iterator[Move]:
    with private_server() as old, private_server() as new:
        apply_release_1(old.urls.owner)
        migrate(new.urls.owner)
        with connected(old.url("postgres")) as superuser:
            superuser.cursor().execute("alter role orders_owner replication password 'test'")
        with connected(new.url("postgres")) as superuser:
            superuser.cursor().execute("grant pg_create_subscription to orders_owner")
        # A subscription that no superuser owns must log in with a password.
        access = old.data / "pg_hba.conf"
        access.write_text(f"local orders orders_owner scram-sha-256\n{access.read_text()}")
        old.stop()
        old.options = "-c wal_level=logical"
        old.start()
        yield Move(old, new, tmp_path, old_password="test")


@contextmanager
def placing_orders(client: Client) -> Iterator[dict[str, Answer]]:
    """Places orders until the end of the block; yields the answers by their Idempotency-Key."""
    answers: dict[str, Answer] = {}
    ended = Event()

    def place() -> None:
        while not ended.wait(0.02):
            key = f"key-{len(answers)}"
            answers[key] = client.place(key=key)

    thread = Thread(target=place)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()


def test_replication_carries_orders_that_are_placed_meanwhile(move: Move, alice: Client) -> None:
    with api_on(move.old.urls.app, DB_POOL_RECYCLE="1"):
        with placing_orders(alice) as answers:
            until(lambda: len(answers) > 10)
            move.run("create policy", "The move")
            move.run("create subscription", SECTION)
            until(lambda: move.run("srsubstate from", SECTION).count("| r") == len(TABLES))
            time.sleep(1.1)  # each connection is replaced, and its role checked again
            copied = len(answers)
            until(lambda: len(answers) > copied + 10)
        assert {answer.status for answer in answers.values()} == {201}
        move.run("= on", "The move")
        time.sleep(1.1)  # open connections may write for their lifetime
        assert alice.place().slug == "unavailable"
    move.run("LAST", SECTION)
    move.run("COUNTS", "The move")

    for table in TABLES:
        assert move.rows(move.new, table) == move.rows(move.old, table) != []
    with api_on(move.new.urls.app):
        for key, answer in answers.items():
            replayed = alice.place(key=key)
            assert (replayed.body, replayed.headers["idempotent-replayed"]) == (answer.body, "true")
        assert alice.place(key="after-the-move").status == 201
