"""The commands of docs/moving.md, between two real databases."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from migrations.migrate import migrate
from tests.docs.clone import shell_with_psql
from tests.docs.pages import blocks
from tests.support.release_1 import apply_release_1
from tests.support.servers import api_on, private_server
from tools.client import Client
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Move:
    """An old and a new database, and the commands of docs/moving.md between them."""

    old: Server
    new: Server
    folder: Path
    old_password: str = ""

    def run(self, containing: str, section: str, *, reverse: bool = False) -> str:
        """Runs the section's block that contains this text; returns its output."""
        (commands,) = [block.text for block in blocks("moving.md", "sh", section) if containing in block.text]
        if reverse:
            commands = commands.replace("OLD_OWNER_URL", "NEW_OWNER_URL")
        old_owner = self.old.urls.owner.replace("@", f":{self.old_password}@")
        urls = {"OLD_OWNER_URL": old_owner, "NEW_OWNER_URL": self.new.urls.owner}
        return shell_with_psql(commands, self.folder, **urls)

    def rows(self, server: Server, table: str) -> Rows:
        with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(f"select * from {table} order by 1, 2, 3")
            rows: Rows = cursor.fetchall()
            return rows


@pytest.fixture(params=[apply_release_1, migrate], ids=["release 1", "this release"])
def move(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Move]:
    """From a database of each schema to one of this release's."""
    with private_server() as old, private_server() as new:
        request.param(old.urls.owner)
        migrate(new.urls.owner)
        yield Move(old, new, tmp_path)


TABLES = ("orders", "order_items", "idempotency_keys")


def test_migration_carries_rows_and_row_level_security(
    move: Move, alice: Client, other_tenant: Client
) -> None:
    with api_on(move.old.urls.app):
        first = alice.place(key="before-the-move")
        assert [first.status, other_tenant.place().status] == [201, 201]
    with api_on(move.new.urls.app):
        assert alice.place().status == 201  # as the conformance list does
    move.run("truncate", "Beforehand")

    with api_on(move.old.urls.app, DB_POOL_RECYCLE="1"):
        assert len(alice.get("/orders").json["orders"]) == 1
        move.run("= on", "The move")
        time.sleep(1.1)  # open connections may write for their lifetime
        assert alice.place().slug == "unavailable"
    with api_on(move.old.urls.app):
        rejected = alice.place(key="during-the-move")
        assert (rejected.slug, rejected.headers["retry-after"]) == ("unavailable", "1")
    move.run("create policy", "The move")
    with api_on(move.old.urls.app):
        assert len(alice.get("/orders").json["orders"]) == 1
    move.run("pg_restore", "The move")
    counts = move.run("COUNTS", "The move").splitlines()

    assert [line for line in counts if "|" in line][0::2] == [line for line in counts if "|" in line][1::2]
    for table in TABLES:
        assert move.rows(move.new, table) == move.rows(move.old, table) != []
    for server in (move.old, move.new):
        forced = move.rows(server, "(select relname, relforcerowsecurity, 0 from pg_class) as c")
        assert {(name, flag) for name, flag, _ in forced if name in TABLES} == {
            (name, True) for name in TABLES
        }
    with api_on(move.new.urls.app):
        replayed = alice.place(key="before-the-move")
        assert (replayed.body, replayed.headers["idempotent-replayed"]) == (first.body, "true")
        assert alice.place(key="during-the-move").status == 201
        assert len(other_tenant.get("/orders").json["orders"]) == 1


def test_a_rollback_carries_new_orders_back(move: Move, alice: Client) -> None:
    with api_on(move.old.urls.app):
        alice.place(key="before-the-move")
    move.run("= on", "The move")
    move.run("create policy", "The move")
    move.run("pg_restore", "The move")
    move.run("COUNTS", "The move")
    with api_on(move.new.urls.app):
        after = alice.place(key="after-the-move")
        move.run("= on", "The move", reverse=True)

    move.run("back.sql", "Rollback")

    for table in TABLES:
        assert move.rows(move.old, table) == move.rows(move.new, table)
    with api_on(move.old.urls.app):
        assert alice.place(key="after-the-move").body == after.body
        assert alice.place().status == 201
