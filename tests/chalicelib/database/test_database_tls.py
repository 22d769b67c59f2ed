"""The way to a database on another machine: a real server that speaks TLS, with a certificate of its own."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import hosts as builds
from local import hosts
from local.database import apply_schema
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
    """Who signed its certificate."""
    other_ca: Path

    def url(self, parameters: str = "", host: str = HOST) -> str:
        """`host` is whom it should be; the address is loopback's."""
        return f"postgresql://orders_app@{host}:{self.port}/orders?hostaddr=127.0.0.1{parameters}"

    def speaks_tls(self, switch: str) -> None:
        self._said(f"alter system set ssl = {switch}")
        self._said("select pg_reload_conf()")
        deadline = time.monotonic() + 30
        while self._said("show ssl") != [switch]:
            assert time.monotonic() < deadline, "the setting never came into force"
            time.sleep(0.05)

    def encrypted(self) -> list[object]:
        """Of each connection of the API, whether it is."""
        return self._said(ENCRYPTED)

    def _said(self, question: str) -> list[object]:
        """On a connection of its own: those that are open learn of settings a little later."""
        admin = f"{self.server.url('postgres')}&port={self.port}"
        with connected(admin) as connection, connection.cursor() as cursor:
            cursor.execute(question)
            return [value for (value,) in cursor.fetchall()] if cursor.description else []


@pytest.fixture(scope="module")
def distant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Whom it lets in does not depend on TLS: it trusts everybody, from everywhere."""
    if not INSTALLED:
        reason = "the embedded PostgreSQL speaks no TLS: apt-get install postgresql-15"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("tls")
    ca, other_ca = certify(folder), certify(folder / "other")
    with private_server(INSTALLED[-1]) as server:
        apply_schema(server.urls.owner)
        whose = server.data.stat()
        for name in ("server.crt", "server.key"):
            there = shutil.copy(folder / name, server.data)
            os.chown(there, whose.st_uid, whose.st_gid)
            Path(there).chmod(0o600)
        found = Database(server, free_port(), ca, other_ca)
        server.stop()
        server.options = f"-F -h 127.0.0.1 -p {found.port}"
        server.start()
        found.speaks_tls("on")
        yield found


@pytest.fixture
def ready(anonymous: Client) -> Callable[[str], int]:
    """What /health/ready says of this database."""

    def ask(url: str) -> int:
        with api_on(url):
            return anonymous.get("/health/ready").status

    return ask


def test_remote_database_connection_uses_tls(distant: Database, alice: Client) -> None:
    with api_on(distant.url()):
        assert alice.place().status == 201
        assert distant.encrypted() == [True]


def test_server_without_tls_is_not_used_by_default(distant: Database, ready: Callable[[str], int]) -> None:
    distant.speaks_tls("off")
    try:
        assert ready(distant.url()) == 503
        assert ready(distant.url("&sslmode=prefer")) == 200
    finally:
        distant.speaks_tls("on")


def test_verify_full_accepts_only_the_matching_certificate(
    distant: Database, ready: Callable[[str], int]
) -> None:
    verified = f"&sslmode=verify-full&sslrootcert={distant.ca}"

    assert ready(distant.url(verified)) == 200
    assert ready(distant.url(f"&sslmode=verify-full&sslrootcert={distant.other_ca}")) == 503
    assert ready(distant.url(verified, host="other.example")) == 503
    assert ready(distant.url("&sslmode=verify-full&sslrootcert=/nowhere")) == 503


def test_pgsslrootcert_sets_the_root_certificate(
    distant: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_SSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(distant.ca))

    assert ready(distant.url()) == 200
    assert ready(distant.url(host="other.example")) == 503


def test_ssl_cert_file_sets_the_system_certificate_authorities(
    distant: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg2's wheel brings an OpenSSL of its own, which finds no other machine's authorities by itself."""
    verified = distant.url("&sslmode=verify-full&sslrootcert=system")

    assert ready(verified) == 503
    monkeypatch.setenv("SSL_CERT_FILE", str(distant.ca))
    assert ready(verified) == 200


def test_sslmode_require_accepts_any_certificate(distant: Database, ready: Callable[[str], int]) -> None:
    """The default keeps listeners out, and nobody who can stand in the database's place."""
    assert ready(distant.url(host="other.example")) == 200


def test_db_sslrootcert_defaults_to_verify_full(
    distant: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is set: the mode is `verify-full` then."""
    monkeypatch.setenv("DB_SSLROOTCERT", str(distant.ca))
    assert ready(distant.url()) == 200
    assert ready(distant.url(host="other.example")) == 503

    monkeypatch.setenv("DB_SSLROOTCERT", str(distant.other_ca))
    assert ready(distant.url()) == 503
    assert ready(distant.url(f"&sslrootcert={distant.ca}")) == 200


@pytest.mark.parametrize("mode", ["require", "verify-ca"])
def test_require_with_db_sslrootcert_verifies_only_the_authority(
    distant: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """libpq takes `require` for `verify-ca` where it has an authority's file."""
    monkeypatch.setenv("DB_SSLMODE", mode)
    monkeypatch.setenv("DB_SSLROOTCERT", str(distant.ca))
    assert ready(distant.url(host="other.example")) == 200

    monkeypatch.setenv("DB_SSLROOTCERT", str(distant.other_ca))
    assert ready(distant.url(host="other.example")) == 503


def test_every_host_of_a_list_is_verified(
    distant: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_SSLROOTCERT", str(distant.ca))
    addresses = f"?hostaddr=127.0.0.1,127.0.0.1&port={distant.port},{distant.port}"

    def either(first: str, second: str) -> int:
        return ready(f"postgresql://orders_app@{first},{second}/orders{addresses}")

    assert either(HOST, HOST) == 200
    assert either("other.example", "another.example") == 503


def test_build_verifies_the_database_with_its_bundled_authority(
    distant: Database, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At Google's runtime, which is told neither a file nor a mode."""

    def ready(authority: str, host: str = HOST) -> int:
        monkeypatch.setenv("DB_SSLROOTCERT", authority)
        builds.build("gcp", tmp_path / "build")
        variables, port = {**environment, "DATABASE_URL": distant.url(host=host)}, free_port()
        with hosts.serving("gcp", tmp_path / "build", variables, "127.0.0.1", port):
            return Client(over_http("127.0.0.1", port), None).get("/health/ready").status

    assert ready(str(distant.ca)) == 200
    assert ready(str(distant.other_ca)) == 503
    assert ready("", host="other.example") == 200
