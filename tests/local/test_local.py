"""`make run`: its error messages, private files, embedded server and signing key."""

import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg2
import pytest

from chalicelib.settings.environment import SettingsError
from local import __main__ as local
from local import database
from local.database import embedded
from local.issuer import Issuer, _write_new_key
from local.postgres import Server, folders_to_open
from tools.postgres_server import connected

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command of `make run`, which must exit by itself."""
    return subprocess.run(
        [sys.executable, "-m", "local", *(command or ("run",))],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_malformed_port_is_explained() -> None:
    result = run(PORT="abc")

    assert result.returncode == 1
    assert result.stderr == "PORT is 'abc': use a number from 1 to 65535, as in make run PORT=8001\n"


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8000.0", "٨"])
def test_port_must_be_a_number_in_range(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", port)

    with pytest.raises(SystemExit, match=f"PORT is {port!r}: use a number"):
        local._port()


def test_an_unreachable_database_is_explained_without_a_traceback() -> None:
    result = run(DATABASE_URL="postgresql://orders_app:s3cret@127.0.0.1:1/orders")

    assert result.returncode == 1
    assert result.stderr.startswith("Your database cannot be used: ")
    assert "Connection refused" in result.stderr
    assert "Traceback" not in result.stderr
    assert "s3cret" not in result.stderr


def test_a_malformed_setting_is_explained_before_serving(database: database.Urls) -> None:
    result = run(DATABASE_URL=database.app, DB_POOL_MAX="many")

    assert result.returncode == 1
    assert result.stderr == "DB_POOL_MAX is 'many': use a whole number from 5 to 86400\n"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://a:s3cret@h/x",
        "postgresql://a:s3@cret@h/x",
        "postgresql://a:s3cret/@h/x",
        "postgresql://a:s3cret@h:y/x",
    ],
)
@pytest.mark.parametrize("name", ["DATABASE_URL", "OWNER_DATABASE_URL"])
def test_malformed_url_is_explained_without_its_password(
    database: database.Urls, name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"DATABASE_URL": database.app, "OWNER_DATABASE_URL": "", name: url}.items():
        monkeypatch.setenv(variable, value)

    refusal = pytest.raises(SettingsError, match=f"^{name} is not a connection URL: ")
    with refusal as refused, local._database():
        pytest.fail("the URL was accepted")

    assert "cret" not in str(refused.value)


def test_make_run_explains_a_malformed_url() -> None:
    result = run(DATABASE_URL="postgresql://a:s3@cret@h/x")

    assert result.returncode == 1
    assert result.stderr.startswith("DATABASE_URL is not a connection URL: ")
    assert "cret" not in result.stderr


@pytest.mark.parametrize("name", ["OWNER_DATABASE_URL", "DB_HOST"])
def test_incomplete_database_settings_are_rejected(name: str) -> None:
    result = run(**{"DATABASE_URL": "", name: "postgresql://owner@db/orders"})

    assert result.returncode == 1
    assert result.stderr.startswith("To use your own server set DATABASE_URL")


def test_a_database_without_the_schema_is_refused(database: database.Urls) -> None:
    result = run(DATABASE_URL=database.app.replace("/orders?", "/postgres?"), OWNER_DATABASE_URL="")

    assert result.returncode == 1
    assert "set OWNER_DATABASE_URL too" in result.stderr


@pytest.mark.parametrize("command", [["run"], ["serve", "aws"]], ids=" ".join)
def test_unsafe_role_is_refused_unless_allowed(admin_url: str, command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = {"PORT": str(listener.getsockname()[1])}

        refused = run(*command, DATABASE_URL=admin_url, OWNER_DATABASE_URL="", **port)
        allowed = run(
            *command, DATABASE_URL=admin_url, OWNER_DATABASE_URL="", DB_ALLOW_UNSAFE_ROLE="1", **port
        )

    assert refused.stderr.startswith(
        "DATABASE_URL cannot be used: the role postgres is a superuser: log in as"
    )
    assert "DB_ALLOW_UNSAFE_ROLE=1" in refused.stderr
    # The error after the role check.
    target = {"run": "run", "serve": "local-aws"}[command[0]]
    assert allowed.stderr == (
        f"Cannot listen on 127.0.0.1:{port['PORT']}: Address already in use. Try: make {target} PORT=8001\n"
    )
    assert (refused.returncode, allowed.returncode) == (1, 1)


def test_a_password_is_kept_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FOLDER", tmp_path)
    (tmp_path / "env").write_text("an older one, open to everyone")

    local._write_private("env", "DATABASE_URL=...")

    assert stat.S_IMODE((tmp_path / "env").stat().st_mode) == 0o600
    for url in (
        "postgresql://orders_app:s3:cret@db:5432/orders",
        "postgresql://db/orders?password=s3:cret&user=x",
    ):
        block = local._block("http://127.0.0.1:8000", url, Issuer(tmp_path), page=True)
        assert "cret" not in block
        assert "***" in block


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_root_gets_the_folders_to_be_opened(tmp_path: Path) -> None:
    closed, inner = tmp_path / "closed", tmp_path / "closed/inner"
    inner.mkdir(parents=True)
    closed.chmod(0o700)
    inner.chmod(0o755)

    folders = folders_to_open(inner / "data")

    assert closed in folders
    assert inner not in folders
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


# The embedded server


@pytest.fixture(scope="module")
def stopped(databases: Path) -> Path:
    """The folder of a server that has run and was stopped."""
    with embedded(databases / "stopped"):
        return databases / "stopped"


@pytest.mark.parametrize("name", ["mein Ordner, it's ü", "long" * 30])
def test_server_restarts_in_folders_with_unusual_names(databases: Path, name: str) -> None:
    for round_no in range(2):
        with embedded(databases / name) as urls, connected(urls.app) as connection:
            cursor = connection.cursor()
            cursor.execute("select count(*), current_user from orders")
            assert cursor.fetchone() == (0, "orders_app"), round_no
    sockets = Server(databases / name)._sockets
    assert sockets.parent == databases / name or not sockets.exists()


def test_interrupted_cluster_is_rebuilt(databases: Path) -> None:
    folder = databases / "interrupted"
    (folder / "postgres.new/base").mkdir(parents=True)
    (folder / "postgres.new/PG_VERSION").write_text("18\n")

    with embedded(folder) as urls, connected(urls.app):
        assert not (folder / "postgres.new").exists()


def test_stale_pid_of_another_process_is_ignored(stopped: Path) -> None:
    with embedded(stopped):
        pid_file = (stopped / "postgres/postmaster.pid").read_text()
    stale = "\n".join([str(os.getpid()), *pid_file.splitlines()[1:]])
    (stopped / "postgres/postmaster.pid").write_text(stale)
    (stopped / "postgres/.s.PGSQL.5432.lock").write_text(stale)

    with embedded(stopped) as urls, connected(urls.app):
        assert (stopped / "postgres/postmaster.pid").read_text() != stale


def test_shutting_down_server_is_waited_for(stopped: Path) -> None:
    with embedded(stopped) as urls, connected(urls.app):
        os.kill(int((stopped / "postgres/postmaster.pid").read_text().split()[0]), signal.SIGTERM)
        with ThreadPoolExecutor(1) as pool:  # PostgreSQL waits for the connection of this block to end
            second = pool.submit(lambda: next(_count_orders(stopped)))
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            os.kill(int((stopped / "postgres/postmaster.pid").read_text().split()[0]), signal.SIGINT)
            assert second.result(timeout=20) == (0,)


def _count_orders(folder: Path) -> Iterator[tuple[int]]:
    with embedded(folder) as urls, connected(urls.app) as connection:
        cursor = connection.cursor()
        cursor.execute("select count(*) from orders")
        yield cursor.fetchone()


def test_server_ignores_the_environments_locale(databases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.ISO-8859-1")

    with embedded(databases / "locale") as urls, connected(urls.app) as connection:
        cursor = connection.cursor()
        cursor.execute("show server_encoding")
        assert cursor.fetchone() == ("UTF8",)


def test_folder_without_a_cluster_is_left_alone(databases: Path) -> None:
    data = databases / "other/postgres"
    (data / "base").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(data, pwd.getpwnam("embedded_postgres").pw_uid, -1)

    with pytest.raises(SystemExit, match="no PostgreSQL cluster"), embedded(data.parent):
        pass

    assert (data / "base").exists()


def test_socket_folder_symlink_is_refused(databases: Path) -> None:
    folder = databases / ("long" * 30 + "planted")
    victim = databases / "victim"
    victim.mkdir()
    before = victim.stat()
    sockets = Server(folder)._sockets
    sockets.symlink_to(victim)

    with pytest.raises(SystemExit, match="belongs to another user"), embedded(folder):
        pass

    assert victim.stat().st_uid == before.st_uid
    sockets.unlink()


def test_last_of_two_users_stops_the_shared_server(stopped: Path) -> None:
    with embedded(stopped):
        with embedded(stopped) as urls:
            pass
        with connected(urls.app):
            pass
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(urls.app)


def test_server_that_stopped_early_causes_no_error(stopped: Path) -> None:
    with embedded(stopped):
        pid = int((stopped / "postgres/postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGINT)  # PostgreSQL's fast shutdown
        psutil.Process(pid).wait(10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could take another user's data")
def test_data_of_another_user_is_left_alone(databases: Path) -> None:
    folder = databases / "foreign"
    (folder / "postgres").mkdir(parents=True)
    os.chown(folder / "postgres", 12345, -1)

    with pytest.raises(SystemExit, match="belongs to"), embedded(folder):
        pass

    assert (folder / "postgres").stat().st_uid == 12345


def test_existing_signing_key_is_kept(tmp_path: Path) -> None:
    first = Issuer(tmp_path)
    key = (tmp_path / "signing-key.pem").read_bytes()

    _write_new_key(tmp_path / "signing-key.pem")

    assert (tmp_path / "signing-key.pem").read_bytes() == key
    assert Issuer(tmp_path).jwks() == first.jwks()
    assert [path.name for path in tmp_path.iterdir()] == ["signing-key.pem"]


@pytest.mark.parametrize("tenant", ["x" * 256, "\t", " "])
def test_token_with_an_invalid_tenant_is_refused(tenant: str) -> None:
    with pytest.raises(SystemExit, match="1 to 255 printable characters"):
        local._token(tenant, "alice")
