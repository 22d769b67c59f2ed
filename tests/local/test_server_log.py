"""PostgreSQL's log contains no values of orders with the settings from docs/database.md."""

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.errors import DeadlockDetected

from migrations.migrate import migrate
from tests.support.servers import api_on, private_server
from tools.client import Client, seed
from tools.log_leaks import find_leaks
from tools.postgres_server import connected

pytestmark = pytest.mark.slow

DOCS = (Path(__file__).parents[2] / "docs/database.md").read_text().partition("## What the server logs")[2]
(DOCUMENTED,) = re.findall(r"```sql\n(.*?)```", DOCS.partition("\n## ")[0], re.DOTALL)
DEFAULT = DOCUMENTED.replace("panic", "error").replace("terse", "'default'")
"""The settings with PostgreSQL's default values."""


def replay(alice: Client) -> None:
    """Places an order twice and another one with its key; the server logs a unique violation for both."""
    key = uuid4().hex
    statuses = [alice.place(order, key=key).status for order in (None, None, seed(total_amount=1))]
    assert statuses == [201, 201, 422]


def deadlock(url: str) -> None:
    """Two sessions of the API's role deadlock; the server ends one and logs both statements."""
    with connected(url) as one, connected(url) as other, one.cursor() as first, other.cursor() as second:
        first.execute("select pg_advisory_lock(1)")
        second.execute("select pg_advisory_lock(2)")

        def wait() -> None:
            with suppress(DeadlockDetected):
                first.execute("select pg_advisory_lock(2) /* John Doe */")
            one.close()

        thread = threading.Thread(target=wait)
        thread.start()
        with suppress(DeadlockDetected):
            second.execute("select pg_advisory_lock(1) /* John Doe */")
        other.close()
        thread.join()


def test_replays_log_no_values_on_the_server(
    alice: Client, rows: Callable[..., list[tuple[Any, ...]]]
) -> None:
    (((folder,),),) = (rows("show data_directory"),)
    log = Path(folder) / "log"
    before = len(log.read_text())

    replay(alice)

    # The first keeps statements out of the log, the second details, such as both statements of a deadlock.
    assert rows(
        "select current_setting('log_min_error_statement'), current_setting('log_error_verbosity')"
    ) == [("panic", "terse")]
    added = log.read_text()[before:]
    assert added.count("duplicate key value violates unique constraint") == 2
    assert not find_leaks("PostgreSQL's log", added)
    for field in ("STATEMENT:", "DETAIL:", "CONTEXT:"):
        assert field not in added


def test_documented_settings_keep_order_values_unlogged(alice: Client) -> None:
    with private_server(log_may_hold_values=True) as server:
        migrate(server.urls.owner)
        log, logs = server.folder / "log", {}
        for name, setting in (("by default", DEFAULT), ("as documented", DOCUMENTED)):
            with connected(server.url("postgres")) as superuser, superuser.cursor() as cursor:
                cursor.execute(setting)
            before = len(log.read_text())
            with api_on(server.urls.app):
                replay(alice)
            deadlock(server.urls.app)
            logs[name] = log.read_text()[before:]

    assert len(find_leaks("PostgreSQL's log", logs["by default"])) >= 4
    details = re.findall(r"DETAIL:.*(?:\n\t.*)*", logs["by default"])
    assert find_leaks("a detail", "\n".join(details))
    assert "deadlock detected" in logs["as documented"]
    assert not find_leaks("PostgreSQL's log", logs["as documented"])
    assert "DETAIL:" not in logs["as documented"]
    assert logs["as documented"].count("duplicate key value violates unique constraint") == 2
