"""What PostgreSQL's own log keeps of an order: nothing, once its role is set up as docs/database.md says."""

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.errors import DeadlockDetected

from local.database import apply_schema
from tests.support.servers import api_on, private_server
from tools.client import Client, seed
from tools.log_leaks import find_leaks
from tools.postgres_server import connected

pytestmark = pytest.mark.slow

DOCS = (Path(__file__).parents[2] / "docs/database.md").read_text().partition("## What the server logs")[2]
(SILENT,) = re.findall(r"```sql\n(.*?)```", DOCS.partition("\n## ")[0], re.DOTALL)
TALKATIVE = SILENT.replace("panic", "error").replace("terse", "'default'")
"""What a server does by default."""


def replay(alice: Client) -> None:
    """An order placed twice, and another under its key: both are refused by the server, and then read."""
    key = uuid4().hex
    statuses = [alice.place(order, key=key).status for order in (None, None, seed(total_amount=1))]
    assert statuses == [201, 201, 422]


def deadlock(url: str) -> None:
    """Two sessions of the API's role wait for each other; the server ends one, and tells what both said."""
    with connected(url) as one, connected(url) as other, one.cursor() as first, other.cursor() as second:
        first.execute("select pg_advisory_lock(1)")
        second.execute("select pg_advisory_lock(2)")

        def wait() -> None:
            with suppress(DeadlockDetected):
                first.execute("select pg_advisory_lock(2) /* John Doe */")
            one.close()

        waiting = threading.Thread(target=wait)
        waiting.start()
        with suppress(DeadlockDetected):
            second.execute("select pg_advisory_lock(1) /* John Doe */")
        other.close()
        waiting.join()


def test_replays_log_no_values_on_the_server(
    alice: Client, rows: Callable[..., list[tuple[Any, ...]]]
) -> None:
    (((folder,),),) = (rows("show data_directory"),)
    log = Path(folder) / "log"
    before = len(log.read_text())

    replay(alice)

    # The first keeps the statements out, the second what a detail quotes: of a deadlock, both sides' words.
    assert rows(
        "select current_setting('log_min_error_statement'), current_setting('log_error_verbosity')"
    ) == [("panic", "terse")]
    added = log.read_text()[before:]
    assert added.count("duplicate key value violates unique constraint") == 2
    assert not find_leaks("PostgreSQL's log", added)
    for quotes_a_value in ("STATEMENT:", "DETAIL:", "CONTEXT:"):
        assert quotes_a_value not in added


def test_documented_settings_keep_order_values_unlogged(alice: Client) -> None:
    with private_server(tells_values=True) as server:
        apply_schema(server.urls.owner)
        log, found = server.folder / "log", {}
        for name, setting in (("by default", TALKATIVE), ("as documented", SILENT)):
            with connected(server.url("postgres")) as superuser, superuser.cursor() as cursor:
                cursor.execute(setting)
            before = len(log.read_text())
            with api_on(server.urls.app):
                replay(alice)
            deadlock(server.urls.app)
            found[name] = log.read_text()[before:]

    assert len(find_leaks("PostgreSQL's log", found["by default"])) >= 4
    details = re.findall(r"DETAIL:.*(?:\n\t.*)*", found["by default"])
    assert find_leaks("a detail", "\n".join(details))
    assert "deadlock detected" in found["as documented"]
    assert not find_leaks("PostgreSQL's log", found["as documented"])
    assert "DETAIL:" not in found["as documented"]
    assert found["as documented"].count("duplicate key value violates unique constraint") == 2
