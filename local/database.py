"""The database of local development: the embedded server's, or your own."""

import fcntl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from chalicelib.database.role_check import ROLE_CHECK, UNSAFE_ROLE
from chalicelib.settings.database import database_settings, parse_database_url
from local.postgres import Server
from migrations.migrate import migrate

START_TIMEOUT = 30
"""Seconds in which a server that is starting up or shutting down must accept connections."""


@dataclass(frozen=True)
class Urls:
    """Where the database is, as the role that owns the tables and as the API's own role."""

    owner: str
    app: str


@contextmanager
def embedded(folder: Path) -> Iterator[Urls]:
    """Start the server whose data is in `folder`, unless it runs; stop it after its last user.

    As on a managed database the owner role is no superuser: it may create roles, and owns the database.
    """
    server = Server(folder)
    with server.lock("postgres.lock", fcntl.LOCK_SH) as users:
        try:
            with server.lock("start.lock", fcntl.LOCK_EX):
                _bring_up(server)
            urls = Urls(owner=server.url("orders_owner"), app=server.url("orders_app"))
            migrate(urls.owner, quiet=False)
            yield urls
        finally:
            with suppress(BlockingIOError):  # another process still uses it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                server.stop()


def check_app_role() -> str | None:
    """Why the API cannot serve with the role of the settings; None if it can."""
    settings = database_settings()
    with _connected(settings.connect) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass('orders') is not null")
        if cursor.fetchone() != (True,):
            return "its database has no orders: set OWNER_DATABASE_URL too, and make run applies schema.sql"
        if settings.unsafe_role:
            return None
        try:
            cursor.execute(ROLE_CHECK)
        except psycopg2.Error as error:
            if error.pgcode != UNSAFE_ROLE:
                raise
            hint = "log in as orders_app, or for an experiment set DB_ALLOW_UNSAFE_ROLE=1"
            return f"{error.diag.message_primary}: {hint}"
    return None


def _bring_up(server: Server) -> None:
    """Start the server and create the database. While it starts up or shuts down, connecting is retried."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        server.start()
        try:
            _create_database(server.url("postgres", "postgres"))
            return
        except psycopg2.OperationalError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"The embedded PostgreSQL does not answer: {error}") from None
            time.sleep(0.2)


def _create_database(admin_url: str) -> None:
    with _connected(parse_database_url(admin_url)) as connection, connection.cursor() as cursor:
        cursor.execute("select from pg_roles where rolname = 'orders_owner'")
        if cursor.rowcount == 0:
            cursor.execute("create role orders_owner login createrole")
        cursor.execute("select from pg_database where datname = 'orders'")
        if cursor.rowcount == 0:
            cursor.execute("create database orders owner orders_owner")


@contextmanager
def _connected(parameters: Mapping[str, Any]) -> Iterator[psycopg2.extensions.connection]:
    connection = psycopg2.connect(**{"connect_timeout": 3, **parameters, "client_encoding": "UTF8"})
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()
