"""Private PostgreSQL servers for tests, and how to connect the API of this process to them."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from chalicelib import composition
from chalicelib.database.tenant_scope import TenantScope
from local import postgres
from tests.support.log_leak_plugin import check_log
from tools import postgres_server
from tools.postgres_server import EMBEDDED, Server, connected

READ_ONLY = "-c%20default_transaction_read_only%3Don"
"""An option in the database's URL."""


@contextmanager
def private_server(
    binaries: Path = EMBEDDED,
    *,
    environment: Mapping[str, str] | None = None,
    log_may_hold_values: bool = False,
) -> Iterator[Server]:
    """A private server for one test; its log is checked for leaks unless it may hold values."""
    with postgres_server.private_server(binaries, environment) as server:
        try:
            yield server
        finally:
            server.stop()
            if not log_may_hold_values:
                check_log(server.folder / "log")


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A standby of `primary`; its log is checked for leaks."""
    with postgres_server.standby_of(primary) as standby:
        try:
            yield standby
        finally:
            standby.stop()
            check_log(standby.folder / "log")


@contextmanager
def api_on(database_url: str, **variables: str) -> Iterator[None]:
    """Runs the API of this process with another database or other settings, and resets it afterwards."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"DATABASE_URL": database_url, **variables}.items():
                patch.setenv(name, value)
            composition.close()
            yield
    finally:
        composition.close()


def scope_of(tenant: str, deadline: float | None = None) -> TenantScope:
    """A TenantScope on the connections of this process's API."""
    return TenantScope(composition.connections, tenant, deadline)


@contextmanager
def limited(url: str, limit: str) -> Iterator[None]:
    """The API of this process with RATE_LIMIT and a new, empty rate limiter, as in a new process."""
    with api_on(url, RATE_LIMIT=limit):
        yield


@dataclass(frozen=True)
class PgBouncer:
    """A pooler in transaction mode with a few connections to the server."""

    url: str

    @property
    def console(self) -> str:
        """URL of the admin console (SHOW, PAUSE, RESUME)."""
        return self.url.replace("/orders?", "/pgbouncer?")


@contextmanager
def pgbouncer(database_url: str, connections: int = 3, clients: int = 200) -> Iterator[PgBouncer]:
    """PgBouncer in front of that server; skips the test if it is not installed, but fails it in CI."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        reason = "PgBouncer is missing: apt-get install pgbouncer"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    server = parse_dsn(database_url)
    with tempfile.TemporaryDirectory(prefix="order-api-pooler-") as name:
        folder = Path(name)
        settings = {
            "listen_addr": "",
            "listen_port": 6543,
            "unix_socket_dir": folder,
            "auth_type": "any",
            "admin_users": "orders_app",
            "pool_mode": "transaction",
            "default_pool_size": connections,
            "max_client_conn": clients,
            "listen_backlog": max(128, clients),
        }
        upstream = f"orders = host={server['host']} port=5432 dbname=orders user={server['user']}"
        lines = ["[databases]", upstream, "[pgbouncer]", *(f"{k} = {v}" for k, v in settings.items())]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        user = postgres.SERVER_USER if os.geteuid() == 0 else None
        if user:
            shutil.chown(folder, user)
        running = subprocess.Popen([program, "-q", folder / "pgbouncer.ini"], user=user, cwd="/")
        try:
            url = f"postgresql://orders_app@/orders?host={folder}&port=6543"
            deadline = time.monotonic() + 10
            while True:
                with suppress(psycopg2.OperationalError), connected(url):
                    break
                assert time.monotonic() < deadline, "PgBouncer does not answer"
                time.sleep(0.05)
            yield PgBouncer(url)
        finally:
            running.terminate()
            running.wait()
