"""What PostgreSQL's own log keeps of an order: nothing, once its role is set up as docs/database.md says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from local.database import apply_schema
from tests.canaries import sightings
from tests.client import Client, seed
from tests.conftest import connected
from tests.servers import api_on, private_server

DOCS = (Path(__file__).parent.parent / "docs/database.md").read_text().partition("## What the server logs")[2]
(SILENT,) = re.findall(r"```sql\n(.*?)```", DOCS.partition("\n## ")[0], re.DOTALL)
TALKATIVE = SILENT.replace("panic", "error").replace("terse", "default")
"""What a server does by default."""


def replay(alice: Client) -> None:
    """An order placed twice, and another under its key: both are refused by the server, and then read."""
    key = uuid4().hex
    statuses = [alice.place(order, key=key).status for order in (None, None, seed(total_amount=1))]
    assert statuses == [201, 201, 422]


def test_replays_leave_no_value_in_the_servers_log(
    alice: Client, rows: Callable[..., list[tuple[Any, ...]]]
) -> None:
    (((folder,),),) = (rows("show data_directory"),)
    log = Path(folder) / "log"
    before = len(log.read_text())

    replay(alice)

    added = log.read_text()[before:]
    assert added.count("duplicate key value violates unique constraint") == 2
    assert not sightings("PostgreSQL's log", added)
    assert "STATEMENT" not in added


def test_by_default_the_log_has_the_order_and_as_documented_it_has_not(alice: Client) -> None:
    with private_server() as server:
        apply_schema(server.urls.owner)
        log, found = server.folder / "log", {}
        for name, setting in (("by default", TALKATIVE), ("as documented", SILENT)):
            with connected(server.url("postgres")) as superuser, superuser.cursor() as cursor:
                cursor.execute(setting)
            before = len(log.read_text())
            with api_on(server.urls.app):
                replay(alice)
            found[name] = log.read_text()[before:]

    assert len(sightings("PostgreSQL's log", found["by default"])) >= 4
    assert not sightings("PostgreSQL's log", found["as documented"])
    assert found["as documented"].count("duplicate key value violates unique constraint") == 2
