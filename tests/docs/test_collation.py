"""docs/collation.md: its check and its repair, on a database of release 1.0.0 whose locale has changed."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from migrations.migrate import PROJECT
from tests.docs.clone import shell_with_psql
from tests.docs.pages import blocks
from tests.docs.test_runbook import runbook_cause
from tests.support.cognito import UserPool, signed
from tests.support.locales import LOCALE, compiled_locales
from tests.support.release_1 import apply_release_1
from tests.support.servers import api_on, private_server
from tests.support.tenants import claims
from tools.client import Answer, Client, Transport
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

TENANTS = ["".join(parts) for parts in product(("shop", "Shop"), ("", "-"), ("1", "b"))]
USERS = ["al9", "al-9"]
KEYS = ["".join(parts) for parts in product(("cart", "Cart"), ("", "-"), ("2", "a", "B"))]
FOREIGN_KEY = "Refused: SQLSTATE 23503: order_items_order_fkey"
SHELL = f"""
exec 2>&1
trap 'echo "exit status $?"; exit 0' EXIT
make() {{ [ "$1" = migrate ] && env "${{@:2}}" PYTHONPATH={PROJECT} {sys.executable} -m migrations; }}
"""
"""Prints errors and the exit status too; `make migrate` without the installation of its tools."""


@dataclass(frozen=True)
class Shop:
    """A database whose locale has changed, orders placed before, and the commands of docs/collation.md."""

    server: Server
    name: str
    folder: Path
    orders: dict[tuple[Client, str], Any]
    """By buyer and Idempotency-Key."""

    def url(self, role: str) -> str:
        return self.server.url(role, self.name)

    def sh(self, section: str) -> list[str]:
        """The lines that the section's commands print, and their exit status."""
        (block,) = blocks("collation.md", "sh", section)
        urls = {"SUPERUSER_URL": self.url("postgres"), "OWNER_DATABASE_URL": self.url("orders_owner")}
        commands = block.text.replace("database orders", f"database {self.name}")
        return shell_with_psql(SHELL + commands, self.folder, **urls).splitlines()

    def sql(self, section: str, role: str) -> list[tuple[Any, ...]]:
        """The rows of the section's last statement."""
        (block,) = blocks("collation.md", "sql", section)
        return self.query(block.text, role)

    def query(self, query: str, role: str = "postgres") -> list[tuple[Any, ...]]:
        with connected(self.url(role)) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def warns(self) -> bool:
        """Whether PostgreSQL prints the page's warning to a new connection."""
        (line,) = blocks("collation.md", "text", "Check")[0].text.splitlines()
        line = line.replace('"orders"', f'"{self.name}"')
        return line in shell_with_psql('psql "$URL" -c "select" 2>&1', URL=self.url("orders_app"))

    def retry(self) -> list[Answer]:
        """Rate limits are counted too: a changed locale doubles their rows."""
        with api_on(self.url("orders_app"), RATE_LIMIT="1000000/s"):
            return [buyer.place(key=key) for buyer, key in self.orders]


@pytest.fixture(scope="module")
def shops(
    in_process: Transport, user_pool: UserPool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Shop]]:
    """Two copies of a damaged database."""
    tokens = [signed(claims(user_pool, tenant, user)) for tenant, user in product(TENANTS, USERS)]
    buyers = [Client(in_process, token) for token in tokens]
    with compiled_locales() as locales:
        environment = {"LOCPATH": str(locales.original), "LC_ALL": LOCALE}
        with private_server(environment=environment) as server:
            apply_release_1(server.urls.owner)
            with api_on(server.urls.app, RATE_LIMIT="1000000/s"):
                orders = {
                    (buyer, key): buyer.place(key=key).json["order"] for buyer, key in product(buyers, KEYS)
                }
            server.run("pg_ctl", "-w", "-m", "fast", "stop")
            server.environment["LOCPATH"] = str(locales.changed)
            server.start()
            with connected(server.url("postgres", "postgres")) as connection:
                connection.cursor().execute("create database copy template orders owner orders_owner")
            folder = tmp_path_factory.mktemp("repair")
            yield [Shop(server, name, folder, orders) for name in ("orders", "copy")]


def is_replay(answer: Answer) -> bool:
    return "idempotent-replayed" in answer.headers


def replayed(answers: list[Answer]) -> list[Any]:
    """The orders of the answers; None for an answer that replays none."""
    return [answer.json["order"] if is_replay(answer) else None for answer in answers]


def is_quoted(output: list[str], section: str, number: int) -> bool:
    """Whether the output contains the lines of the section's block of output."""
    lines = blocks("collation.md", "text", section)[number].text.splitlines()
    return any(output[start : start + len(lines)] == lines for start in range(len(output)))


def test_migration_repairs_indexes_if_no_key_is_doubled(shops: list[Shop]) -> None:
    _, shop = shops
    assert shop.sql("Check", "postgres")[0][:2] == ("c", LOCALE)
    assert shop.sh("Check")[-1] == "exit status 2"
    assert not shop.warns()
    shop.query("update pg_database set datcollversion = '2.31' where datname = 'copy' returning 1")
    assert shop.warns()

    assert shop.sh("Repair")[-2:] == ["The database is at version 7", "exit status 0"]

    assert shop.sh("Afterwards")[-1] == "exit status 0"
    assert not shop.warns()
    assert replayed(shop.retry()) == list(shop.orders.values())


def test_doubled_keys_are_repaired_and_no_order_is_deleted(
    shops: list[Shop], caplog: pytest.LogCaptureFixture
) -> None:
    shop, _ = shops
    assert is_quoted(shop.sh("Check"), "Check", 1)
    second = [answer for answer in shop.retry() if answer.status == 201 and not is_replay(answer)]
    later = {answer.json["order"]["order_id"] for answer in second}
    assert len(later) > len(shop.orders) / 2
    for record in caplog.records:
        if record.exc_info:
            assert runbook_cause(f"Refused: {record.exc_info[1]}") == runbook_cause(FOREIGN_KEY)

    shop.sql("Stop writing", "postgres")
    assert {answer.slug for answer in shop.retry() if not is_replay(answer)} == {"unavailable"}
    assert is_quoted(shop.sh("Repair"), "Keys that exist twice", 0)
    (repair,) = blocks("collation.md", "sql", "Keys that exist twice")
    (shop.folder / "repair.sql").write_text(repair.text)
    assert shop.sh("Keys that exist twice")[-2:] == ["The database is at version 7", "exit status 0"]

    assert shop.sh("Afterwards")[-1] == "exit status 0"
    assert replayed(shop.retry()) == list(shop.orders.values())
    with api_on(shop.url("orders_app")):
        first = {
            order["order_id"]: buyer.get(f"/orders/{order['order_id']}").status
            for (buyer, _), order in shop.orders.items()
        }
    assert set(first.values()) == {200}
    assert {order_id for (order_id,) in shop.query("select order_id::text from orders")} == later | set(first)
    listed = shop.sql("Afterwards", "orders_owner")
    assert {(row[2] in later, row[3] in first, row[4]) for row in listed} == {(True, True, True)}
    assert len(listed) == len(later)
