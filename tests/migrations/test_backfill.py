"""A new column of a large table is filled in batches while the API serves, as later migrations do it."""

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from chalicelib.database.schema_check import SCHEMA_VERSION
from migrations.migrate import PROJECT, alembic_config, migrate
from migrations.progress import Progress
from migrations.steps import BATCH
from tests.chalicelib.database.test_schema import execute, new_database, owner_url
from tests.support.servers import api_on
from tools.client import Client
from tools.postgres_server import EMBEDDED, connected

ORDERS = 2 * BATCH + 1
FILL = f"""
    insert into orders
    select 'tenant-' || g % 7, gen_random_uuid(), 'alice', 'pending', 1, 'John Doe', 'john@example.com',
           null, null, null, 1, 'USD', now(), now()
    from generate_series(1, {ORDERS}) as g"""
STEPS = [
    "execute('alter table orders add column gift text');"
    "execute('alter table orders alter column gift set default $$no$$');"
    "show_rows_to_owner('orders')",
    "backfill('orders', ['tenant_id', 'order_id'], \"gift = 'no'\", 'gift is null')",
    "hide_rows_from_owner('orders')",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three migrations more than the project has."""
    for number, step in enumerate(STEPS, start=SCHEMA_VERSION + 1):
        (tmp_path / f"{number}.py").write_text(
            "from migrations.steps import backfill, execute, hide_rows_from_owner, show_rows_to_owner\n"
            f"revision, down_revision = '{number:04}', '{number - 1:04}'\n"
            f"def upgrade(): {step}\n"
        )
    return tmp_path


@pytest.fixture
def url(admin_url: str) -> Iterator[str]:
    with new_database(admin_url) as url:
        migrate(owner_url(url))
        execute(url, FILL)
        yield url


def upgrade(config: Config, folder: Path, target: int, *, sql: bool = False) -> None:
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", f"{PROJECT}/migrations/versions:{folder}")
    start = f"{SCHEMA_VERSION:04}:" if sql else ""
    command.upgrade(config, f"{start}{target:04}", sql=sql)


def gifts(url: str) -> list[tuple[Any, ...]]:
    """Each value of the new column, in how many transactions it was written, and in how many orders."""
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select gift, count(distinct xmin::text), count(*) from orders group by gift order by gift"
        )
        return list(cursor.fetchall())


def test_backfill_commits_batches_while_the_api_serves(url: str, folder: Path, alice: Client) -> None:
    app_url = url.replace("user=postgres", "user=orders_app")
    progress = Progress(lambda: None, quiet=True)
    engine = create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(owner_url(url)))
    for version in range(SCHEMA_VERSION + 1, SCHEMA_VERSION + 4):
        with engine.connect() as connection:
            upgrade(alembic_config(connection=connection, progress=progress), folder, version)
        with api_on(app_url):  # new connections, so that the role is checked
            assert alice.place().status == 201

    assert gifts(url) == [("no", 3 + 3, ORDERS + 3)]
    assert gifts(owner_url(url)) == []


def test_printed_backfill_does_the_same(url: str, folder: Path) -> None:
    output = io.StringIO()
    upgrade(alembic_config(output), folder, SCHEMA_VERSION + 3, sql=True)

    psql = [str(EMBEDDED / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", owner_url(url)]
    subprocess.run(psql, input=output.getvalue(), text=True, check=True)

    assert gifts(url) == [("no", 3, ORDERS)]
    assert gifts(owner_url(url)) == []
