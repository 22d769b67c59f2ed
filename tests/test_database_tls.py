"""The way to a database on another machine: a real server that speaks TLS, with a certificate of its own."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from local.database import apply_schema
from tests.client import Client, free_port
from tests.conftest import connected
from tests.servers import INSTALLED, Server, api_on, private_server

HOST = "db.example"
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
    (folder / "other").mkdir()
    certify(folder)
    certify(folder / "other")
    with private_server(INSTALLED[-1]) as server:
        apply_schema(server.urls.owner)
        whose = server.data.stat()
        for name in ("server.crt", "server.key"):
            there = shutil.copy(folder / name, server.data)
            os.chown(there, whose.st_uid, whose.st_gid)
            Path(there).chmod(0o600)
        found = Database(server, free_port(), folder / "server.crt", folder / "other/server.crt")
        server.stop()
        server.options = f"-F -h 127.0.0.1 -p {found.port}"
        server.start()
        found.speaks_tls("on")
        yield found


def certify(folder: Path) -> None:
    """A key for HOST, and a certificate that it signs itself."""
    key = rsa.generate_private_key(65537, 2048)
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "server.crt").write_bytes(certificate.public_bytes(pem))
    (folder / "server.key").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))


@pytest.fixture
def ready(nobody: Client) -> Callable[[str], int]:
    """What /health/ready says of this database."""

    def ask(url: str) -> int:
        with api_on(url):
            return nobody.get("/health/ready").status

    return ask


def test_a_database_on_another_machine_is_reached_through_tls(distant: Database, alice: Client) -> None:
    with api_on(distant.url()):
        assert alice.place().status == 201
        assert distant.encrypted() == [True]


def test_nothing_is_said_to_a_server_that_speaks_no_tls(
    distant: Database, ready: Callable[[str], int]
) -> None:
    distant.speaks_tls("off")
    try:
        assert ready(distant.url()) == 503
        assert ready(distant.url("&sslmode=prefer")) == 200
    finally:
        distant.speaks_tls("on")


def test_verify_full_takes_the_right_certificate_and_no_other(
    distant: Database, ready: Callable[[str], int]
) -> None:
    verified = f"&sslmode=verify-full&sslrootcert={distant.ca}"

    assert ready(distant.url(verified)) == 200
    assert ready(distant.url(f"&sslmode=verify-full&sslrootcert={distant.other_ca}")) == 503
    assert ready(distant.url(verified, host="other.example")) == 503
    assert ready(distant.url("&sslmode=verify-full&sslrootcert=/nowhere")) == 503


def test_libpqs_own_variable_names_the_root_certificate_too(
    distant: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_SSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(distant.ca))

    assert ready(distant.url()) == 200
    assert ready(distant.url(host="other.example")) == 503


def test_public_authorities_are_those_of_the_file_that_openssls_variable_names(
    distant: Database, ready: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg2's wheel brings an OpenSSL of its own, which finds no other machine's authorities by itself."""
    verified = distant.url("&sslmode=verify-full&sslrootcert=system")

    assert ready(verified) == 503
    monkeypatch.setenv("SSL_CERT_FILE", str(distant.ca))
    assert ready(verified) == 200


def test_require_alone_takes_any_certificate(distant: Database, ready: Callable[[str], int]) -> None:
    """The default keeps listeners out, and nobody who can stand in the database's place."""
    assert ready(distant.url(host="other.example")) == 200
