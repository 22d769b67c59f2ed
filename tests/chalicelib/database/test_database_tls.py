"""TLS to a remote database, tested on a real server with its own certificate."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import hosts as builds
from local import hosts
from migrations.migrate import migrate
from tests.support.certificates import HOST, certify
from tests.support.servers import api_on, private_server
from tools.client import Client, free_port, over_http
from tools.postgres_server import INSTALLED, Server, connected

pytestmark = pytest.mark.slow

ENCRYPTED = """\
select ssl from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'order-api'
"""


@dataclass(frozen=True)
class Database:
    server: Server
    port: int
    ca: Path
    """The CA that signed the server's certificate."""
    other_ca: Path

    def url(self, parameters: str = "", host: str = HOST) -> str:
        """The host name is verified; `hostaddr` connects to loopback."""
        return f"postgresql://orders_app@{host}:{self.port}/orders?hostaddr=127.0.0.1{parameters}"

    def set_tls(self, switch: str) -> None:
        self._query(f"alter system set ssl = {switch}")
        self._query("select pg_reload_conf()")
        deadline = time.monotonic() + 30
        while self._query("show ssl") != [switch]:
            assert time.monotonic() < deadline, "the setting did not take effect"
            time.sleep(0.05)

    def encrypted(self) -> list[object]:
        """Whether each of the API's connections uses TLS."""
        return self._query(ENCRYPTED)

    def _query(self, query: str) -> list[object]:
        """Runs on a new connection: open ones apply a reloaded setting later."""
        admin = f"{self.server.url('postgres')}&port={self.port}"
        with connected(admin) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return [value for (value,) in cursor.fetchall()] if cursor.description else []


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A server with trust authentication, so that logins do not depend on TLS."""
    if not INSTALLED:
        reason = "the embedded PostgreSQL speaks no TLS: apt-get install postgresql-15"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("tls")
    ca, other_ca = certify(folder), certify(folder / "other")
    with private_server(INSTALLED[-1]) as server:
        migrate(server.urls.owner)
        owner = server.data.stat()
        for name in ("server.crt", "server.key"):
            copy = shutil.copy(folder / name, server.data)
            os.chown(copy, owner.st_uid, owner.st_gid)
            Path(copy).chmod(0o600)
        database = Database(server, free_port(), ca, other_ca)
        server.stop()
        server.options = f"-F -h 127.0.0.1 -p {database.port}"
        server.start()
        database.set_tls("on")
        yield database


@pytest.fixture
def ready(anonymous: Client) -> Callable[[str], int]:
    """The status of /health/ready with this database URL."""

    def status(url: str) -> int:
        with api_on(url):
            return anonymous.get("/health/ready").status

    return status


def test_remote_database_connection_uses_tls(remote: Database, alice: Client) -> None:
    with api_on(remote.url()):
        assert alice.place().status == 201
        assert remote.encrypted() == [True]


def test_server_without_tls_is_not_used_by_default(remote: Database, ready: Callable[[str], int]) -> None:
    remote.set_tls("off")
    try:
        assert ready(remote.url()) == 503
        assert ready(remote.url("&sslmode=prefer")) == 200
    finally:
        remote.set_tls("on")


def test_verify_full_accepts_only_the_matching_certificate(
    remote: Database, ready: Callable[[str], int]
) -> None:
    verified = f"&sslmode=verify-full&sslrootcert={remote.ca}"

    assert ready(remote.url(verified)) == 200
    assert ready(remote.url(f"&sslmode=verify-full&sslrootcert={remote.other_ca}")) == 503
    assert ready(remote.url(verified, host="other.example")) == 503
    assert ready(remote.url("&sslmode=verify-full&sslrootcert=/nowhere")) == 503


def test_pgsslrootcert_sets_the_root_certificate(
    remote: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_SSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(remote.ca))

    assert ready(remote.url()) == 200
    assert ready(remote.url(host="other.example")) == 503


def test_ssl_cert_file_sets_the_system_certificate_authorities(
    remote: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg2's wheel bundles OpenSSL, whose default CA path does not exist on this machine."""
    verified = remote.url("&sslmode=verify-full&sslrootcert=system")

    assert ready(verified) == 503
    monkeypatch.setenv("SSL_CERT_FILE", str(remote.ca))
    assert ready(verified) == 200


def test_sslmode_require_accepts_any_certificate(remote: Database, ready: Callable[[str], int]) -> None:
    """The default prevents eavesdropping but not impersonation of the database."""
    assert ready(remote.url(host="other.example")) == 200


def test_db_sslrootcert_defaults_to_verify_full(
    remote: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without DB_SSLMODE, setting DB_SSLROOTCERT selects `verify-full`."""
    monkeypatch.setenv("DB_SSLROOTCERT", str(remote.ca))
    assert ready(remote.url()) == 200
    assert ready(remote.url(host="other.example")) == 503

    monkeypatch.setenv("DB_SSLROOTCERT", str(remote.other_ca))
    assert ready(remote.url()) == 503
    assert ready(remote.url(f"&sslrootcert={remote.ca}")) == 200


@pytest.mark.parametrize("mode", ["require", "verify-ca"])
def test_require_with_db_sslrootcert_verifies_only_the_authority(
    remote: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """libpq treats `require` as `verify-ca` when a root certificate is configured."""
    monkeypatch.setenv("DB_SSLMODE", mode)
    monkeypatch.setenv("DB_SSLROOTCERT", str(remote.ca))
    assert ready(remote.url(host="other.example")) == 200

    monkeypatch.setenv("DB_SSLROOTCERT", str(remote.other_ca))
    assert ready(remote.url(host="other.example")) == 503


def test_every_host_of_a_list_is_verified(
    remote: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_SSLROOTCERT", str(remote.ca))
    addresses = f"?hostaddr=127.0.0.1,127.0.0.1&port={remote.port},{remote.port}"

    def status(first: str, second: str) -> int:
        return ready(f"postgresql://orders_app@{first},{second}/orders{addresses}")

    assert status(HOST, HOST) == 200
    assert status("other.example", "another.example") == 503


def test_build_verifies_the_database_with_its_bundled_authority(
    remote: Database, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Google Cloud build, run without DB_SSLROOTCERT and DB_SSLMODE."""

    def ready(authority: str, host: str = HOST) -> int:
        monkeypatch.setenv("DB_SSLROOTCERT", authority)
        builds.build("gcp", tmp_path / "build")
        variables, port = {**environment, "DATABASE_URL": remote.url(host=host)}, free_port()
        with hosts.serving("gcp", tmp_path / "build", variables, "127.0.0.1", port):
            return Client(over_http("127.0.0.1", port), None).get("/health/ready").status

    assert ready(str(remote.ca)) == 200
    assert ready(str(remote.other_ca)) == 503
    assert ready("", host="other.example") == 200
