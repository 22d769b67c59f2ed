"""PostgreSQL servers of a test's own, and the way to point the API of this process at them."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from chalicelib import composition
from chalicelib.database.tenant_scope import TenantScope
from local import postgres
from tests.support.log_leak_plugin import hear
from tools import postgres_server
from tools.postgres_server import EMBEDDED, Server, connected

READ_ONLY = "-c%20default_transaction_read_only%3Don"
"""An option in the database's URL."""


@contextmanager
def private_server(binaries: Path = EMBEDDED, *, tells_values: bool = False) -> Iterator[Server]:
    """A server of the test's own; its log is checked for leaks unless it may hold values."""
    with postgres_server.private_server(binaries) as server:
        try:
            yield server
        finally:
            server.stop()
            if not tells_values:
                hear(server.folder / "log")


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A standby of it; its log is checked for leaks."""
    with postgres_server.standby_of(primary) as standby:
        try:
            yield standby
        finally:
            standby.stop()
            hear(standby.folder / "log")


@contextmanager
def api_on(database_url: str, **variables: str) -> Iterator[None]:
    """The API of this process on another database, or with other limits; then on its own again."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"DATABASE_URL": database_url, **variables}.items():
                patch.setenv(name, value)
            composition.close()
            yield
    finally:
        composition.close()


def scope_of(tenant: str, deadline: float | None = None) -> TenantScope:
    """A tenant's access to the database that this process's API uses now."""
    return TenantScope(composition.connections(), tenant, deadline)


@contextmanager
def limited(url: str, limit: str) -> Iterator[None]:
    """The API of this process with RATE_LIMIT; as another process would begin, remembering nobody."""
    with api_on(url, RATE_LIMIT=limit):
        yield


@dataclass(frozen=True)
class PgBouncer:
    """A pooler in transaction mode with a few connections to the server."""

    url: str

    @property
    def console(self) -> str:
        """Where it is asked about itself, and told to pause."""
        return self.url.replace("/orders?", "/pgbouncer?")


@contextmanager
def pgbouncer(database_url: str, connections: int = 3, clients: int = 200) -> Iterator[PgBouncer]:
    """PgBouncer in front of that server; skipped loudly where it is not installed, and never in CI."""
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
