"""DB_PASSWORD as a secret reference: fetched once, refetched after a failed login, never logged."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest

from chalicelib import composition
from chalicelib.composition import connections
from chalicelib.errors import Unavailable
from chalicelib.settings import secret_stores as stores
from chalicelib.settings import secrets
from chalicelib.settings.database import database_settings
from chalicelib.settings.environment import SettingsError
from local.environments import environment
from migrations.migrate import migrate
from tests.support import cognito, secret_servers
from tests.support.log_leak_plugin import check_log_text
from tests.support.refusals import assert_unavailable
from tests.support.secret_servers import AZURE_SECRET, GOOGLE_SECRET, OCI_SECRET, Store
from tests.support.servers import private_server
from tools.client import Client
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[3]
ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop/db-AbCdEf"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


@dataclass
class Database:
    """A PostgreSQL server with password authentication for the API's role."""

    server: Server
    password: str = ""

    def change_password(self) -> str:
        """Rotates the password; open sessions stay open."""
        self.password = f"s3cret-{uuid4().hex}"
        self._run(f"alter role orders_app password '{self.password}'")
        return self.password

    def end_sessions(self) -> None:
        self._run("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'orders_app'")

    def json(self, **changes: str) -> str:
        """The secret in the format of RDS."""
        members = {
            "engine": "postgres",
            "host": str(self.server.folder),
            "port": 5432,
            "dbname": "orders",
            "username": "orders_app",
            "password": self.password,
        }
        return json.dumps({**members, **changes})

    @property
    def failed_logins(self) -> int:
        """How many logins of the API's role have failed."""
        return (self.server.folder / "log").read_text().count('failed for user "orders_app"')

    @property
    def parts(self) -> dict[str, str]:
        return {"DB_HOST": str(self.server.folder), "DB_NAME": "orders", "DB_USER": "orders_app"}

    def _run(self, statement: str) -> None:
        with connected(self.server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.fixture(scope="module")
def server(database: object) -> Iterator[Server]:  # noqa: ARG001 (as root it makes the server's user)
    with private_server() as server:
        migrate(server.urls.owner)
        rules = "local all postgres trust\nlocal all orders_owner trust\nlocal all all scram-sha-256\n"
        (server.folder / "data/pg_hba.conf").write_text(rules)
        with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("select pg_reload_conf()")
        yield server


@pytest.fixture
def postgres(server: Server) -> Database:
    postgres = Database(server)
    postgres.change_password()
    return postgres


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server, endpoint = cognito.start()
    yield endpoint
    server.stop()


@dataclass
class Manager:
    """AWS Secrets Manager (moto) with one secret, behind a proxy that can fail."""

    arn: str
    proxy: Store
    _client: Any

    def put(self, text: str) -> None:
        self._client.put_secret_value(SecretId=self.arn, SecretString=text)

    def put_bytes(self, content: bytes) -> None:
        self._client.put_secret_value(SecretId=self.arn, SecretBinary=content)


@pytest.fixture(scope="module")
def client_of_moto(moto: str) -> Any:
    return boto3.client(
        "secretsmanager",
        region_name=cognito.REGION,
        endpoint_url=moto,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


@pytest.fixture
def manager(moto: str, client_of_moto: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    client = client_of_moto
    arn = client.create_secret(Name=f"shop/{uuid4().hex}", SecretString="not yet")["ARN"]
    proxy = Store(secret_servers.in_front_of(moto))
    with secret_servers.serving(proxy) as variables:
        for name, value in {**variables, **CREDENTIALS}.items():
            monkeypatch.setenv(name, value)
        yield Manager(arn, proxy, client)


@contextmanager
def api_with(timeout: float = 30, /, **variables: str) -> Iterator[None]:
    """Runs the API of this process with these variables and without DATABASE_URL.

    `timeout`: seconds of a first fetch; the default bears a busy machine.
    """
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("DATABASE_URL", raising=False)
            patch.setattr(secrets, "FIRST_FETCH_TIMEOUT", timeout)
            for name, value in variables.items():
                patch.setenv(name, value)
            composition.close()
            yield
    finally:
        composition.close()


def test_password_is_fetched_once_from_its_store(alice: Client, postgres: Database, manager: Manager) -> None:
    manager.put(postgres.password)

    with api_with(DB_PASSWORD=manager.arn, **postgres.parts):
        assert alice.place().status == 201
        assert alice.get("/orders").status == 200

    assert manager.proxy.fetches == 1


def test_a_secret_of_rds_needs_no_other_variable(alice: Client, postgres: Database, manager: Manager) -> None:
    manager.put(postgres.json())

    with api_with(DB_PASSWORD=manager.arn):
        assert alice.place().status == 201


def test_secret_may_list_hosts_with_their_ports(alice: Client, postgres: Database, manager: Manager) -> None:
    folder = str(postgres.server.folder)
    manager.put(postgres.json(host=f"/nowhere,{folder}", port="5433,5432"))

    with api_with(DB_PASSWORD=manager.arn):
        assert alice.get("/health/ready").status == 200


def test_secret_members_take_precedence_over_variables(
    alice: Client, postgres: Database, manager: Manager
) -> None:
    manager.put(postgres.json())

    with api_with(DB_PASSWORD=manager.arn, DB_HOST="/nowhere", DB_NAME="nothing", DB_USER="nobody"):
        assert alice.place().status == 201


def test_request_during_a_rotation_succeeds(alice: Client, postgres: Database, manager: Manager) -> None:
    manager.put(postgres.json())

    with api_with(DB_PASSWORD=manager.arn):
        assert alice.place().status == 201
        manager.put(json.dumps({**json.loads(postgres.json()), "password": postgres.change_password()}))
        assert alice.place().status == 201  # on the open connection
        assert manager.proxy.fetches == 1

        postgres.end_sessions()
        assert alice.place().status == 201
        assert manager.proxy.fetches == 2
        postgres.end_sessions()
        assert alice.place().status == 201
        assert manager.proxy.fetches == 2


def test_concurrent_requests_during_a_rotation_fetch_once(
    alice: Client, postgres: Database, manager: Manager
) -> None:
    manager.put(postgres.password)

    with api_with(DB_PASSWORD=manager.arn, **postgres.parts), ThreadPoolExecutor(20) as pool:
        assert [*pool.map(lambda _: alice.place().status, range(20))] == [201] * 20
        assert manager.proxy.fetches == 1

        manager.put(postgres.change_password())
        postgres.end_sessions()

        assert [*pool.map(lambda _: alice.place().status, range(20))] == [201] * 20
        assert manager.proxy.fetches == 2


def test_wrong_password_is_not_refetched_for_every_request(
    alice: Client, postgres: Database, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.put("s3cret-of-another")
    failed = postgres.failed_logins

    with api_with(DB_PASSWORD=manager.arn, **postgres.parts):
        for _ in range(5):
            assert_unavailable(alice.place())
        assert manager.proxy.fetches == 2
        assert postgres.failed_logins == failed + 5  # no retry with the same password

        monkeypatch.setattr(secrets, "RETRY_INTERVAL", 0)
        manager.put(postgres.password)
        assert alice.place().status == 201
        assert manager.proxy.fetches == 3


def test_unavailable_store_is_503_until_it_recovers(
    alice: Client, postgres: Database, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.put(postgres.password)
    manager.proxy.behaviour = "down"

    with api_with(DB_PASSWORD=manager.arn, **postgres.parts):
        assert_unavailable(alice.place())
        assert_unavailable(alice.get("/health/ready"))
        assert f"cannot fetch the secret {manager.arn}: ClientError: An error occurred" in caplog.text

        manager.proxy.behaviour = "good"
        time.sleep(secrets.FIRST_RETRY_INTERVAL)
        assert alice.place().status == 201


def test_unresponsive_store_times_out(
    alice: Client, postgres: Database, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.proxy.behaviour = "slow"
    timeout = secrets.FIRST_FETCH_TIMEOUT

    with api_with(timeout, DB_PASSWORD=manager.arn, **postgres.parts), ThreadPoolExecutor(20) as pool:
        started = time.monotonic()
        for answer in pool.map(lambda _: alice.place(), range(20)):
            assert_unavailable(answer)
        assert time.monotonic() - started < timeout + 4

    assert "no answer in 5 seconds" in caplog.text
    assert caplog.text.count("cannot fetch") == 1


@pytest.mark.parametrize("behaviour", ["down", "forbidden", "broken", "slow"])
def test_old_value_is_used_while_the_store_fails(
    postgres: Database, manager: Manager, behaviour: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager.put(postgres.password)
    secret = secrets.Secret(stores.reference("aws", manager.arn), lifetime=0)
    old_value = secret.variables()
    manager.proxy.behaviour = behaviour
    started = time.monotonic()

    with ThreadPoolExecutor(20) as pool:
        assert [*pool.map(lambda _: secret.variables(), range(20))] == [old_value] * 20

    assert time.monotonic() - started < secrets.REFRESH_TIMEOUT + 3
    assert "the older value goes on serving" in caplog.text
    assert caplog.text.count("cannot fetch") == 1
    assert postgres.password not in caplog.text


def test_secret_is_refetched_after_its_lifetime(manager: Manager) -> None:
    manager.put("first")
    secret = secrets.Secret(stores.reference("aws", manager.arn), lifetime=1)
    assert secret.variables() == {"DB_PASSWORD": "first"}
    manager.put("second")
    assert secret.variables() == {"DB_PASSWORD": "first"}

    time.sleep(1)

    assert secret.variables() == {"DB_PASSWORD": "second"}
    assert manager.proxy.fetches == 2


UNUSABLE = [
    ("\n", "it is empty"),
    ('{"username": "orders_app"}', "without the member password"),
    ('{"password": null}', "without the member password"),
    ('{"password": ["s3cret"]}', "its member password is malformed"),
    ('{"password": "s3cret",}', "malformed JSON"),
    ('{"password": "x", "host": "orders_app:s3cret@db.example"}', "its member host is malformed"),
    ('{"password": "x", "port": "s3cret"}', "its member port is malformed"),
    ('{"password": "x", "port": "5432,s3cret"}', "its member port is malformed"),
    ('{"password": "x", "dbname": "s3cret@db"}', "its member dbname is malformed"),
    ("s3cret\0", "its member password is malformed"),
]


def test_secret_without_password_is_explained_and_not_logged(
    manager: Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "FIRST_RETRY_INTERVAL", 0)
    with api_with(DB_PASSWORD=manager.arn):
        for text, reason in UNUSABLE:
            manager.put(text)
            caplog.clear()

            with pytest.raises(Unavailable):
                connections().ping()

            assert f"cannot fetch the secret {manager.arn}: Unusable: " in caplog.text, text
            assert reason in caplog.text
            assert "s3cret" not in caplog.text


def test_binary_secret_is_explained(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    manager.put_bytes(b"\xff\xfe")

    with api_with(DB_PASSWORD=manager.arn), pytest.raises(Unavailable):
        connections().ping()

    assert "Unusable: it holds no text" in caplog.text


@pytest.mark.parametrize(
    ("text", "password"),
    [("p@ss w/%40rd", "p@ss w/%40rd"), ("pass\n", "pass"), ("{pass", "{pass"), (' {"password": "{}"}', "{}")],
)
def test_password_text_is_parsed_without_decoding(text: str, password: str) -> None:
    assert secrets.parse(text) == {"DB_PASSWORD": password}


def test_a_plain_secret_needs_the_other_variables(postgres: Database, manager: Manager) -> None:
    manager.put(postgres.password)

    with api_with(DB_PASSWORD=manager.arn), pytest.raises(SettingsError, match="DB_HOST is not set"):
        connections().ping()


def test_secrets_are_not_logged_at_debug_level(
    alice: Client, postgres: Database, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.put(postgres.json())
    caplog.set_level(logging.DEBUG)

    with api_with(DB_PASSWORD=manager.arn):
        assert alice.place().status == 201
        postgres.end_sessions()
        manager.proxy.behaviour = "broken"
        postgres.change_password()
        assert_unavailable(alice.place())
        assert manager.arn in repr(database_settings())

    assert "cannot fetch" in caplog.text
    assert "s3cret" not in caplog.text


def test_repr_does_not_show_the_password() -> None:
    with api_with(DB_PASSWORD="s3cret", DB_HOST="db.example", DB_NAME="orders", DB_USER="orders_app"):
        assert database_settings().connect["password"] == "s3cret"
        assert "s3cret" not in repr(database_settings())


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        (ARN, (ARN, "eu-west-1")),
        (ARN.replace("aws:", "aws-us-gov:"), (ARN.replace("aws:", "aws-us-gov:"), "eu-west-1")),
        (ARN.replace("aws:", "aws-cn:"), (ARN.replace("aws:", "aws-cn:"), "eu-west-1")),
        (ARN.replace("shop/db", "rds!cluster-1f"), (ARN.replace("shop/db", "rds!cluster-1f"), "eu-west-1")),
        (AZURE_SECRET, ("https://shop.vault.azure.net", "db-password", None)),
        (f"{AZURE_SECRET}/{'0f' * 16}", ("https://shop.vault.azure.net", "db-password", "0f" * 16)),
        (GOOGLE_SECRET, (GOOGLE_SECRET, None)),
        (f"{GOOGLE_SECRET}/versions/latest", (GOOGLE_SECRET, "latest")),
        (f"{GOOGLE_SECRET}/versions/12", (GOOGLE_SECRET, "12")),
        (OCI_SECRET, (OCI_SECRET,)),
    ],
)
def test_secret_reference_is_parsed(reference: str, parts: tuple[str | None, ...]) -> None:
    with api_with(DB_PASSWORD=reference):
        secret = database_settings().secret

    assert secret is not None
    assert (str(secret), secret.parts) == (reference, parts)


@pytest.mark.parametrize(
    ("near_match", "form"),
    [
        (ARN[:-7], "arn:aws:secretsmanager:<region>"),
        (f"{ARN}:password::", "arn:aws:secretsmanager:<region>"),
        (f"{ARN}\n", "arn:aws:secretsmanager:<region>"),
        (f'"{ARN}"', "arn:aws:secretsmanager:<region>"),
        (ARN.upper(), "arn:aws:secretsmanager:<region>"),
        ("arn:aws:ssm:eu-west-1:123456789012:parameter/s3cret", "arn:aws:secretsmanager:<region>"),
        ("{{resolve:secretsmanager:s3cret}}", "arn:aws:secretsmanager:<region>"),
        (AZURE_SECRET.replace("https", "http"), "https://<vault>.vault.azure.net"),
        (AZURE_SECRET.removeprefix("https://"), "https://<vault>.vault.azure.net"),
        (AZURE_SECRET.replace(".net", ".net.example"), "https://<vault>.vault.azure.net"),
        (f"{AZURE_SECRET}/s3cret", "https://<vault>.vault.azure.net"),
        (f"@Microsoft.KeyVault(SecretUri={AZURE_SECRET})", "https://<vault>.vault.azure.net"),
        (f"{GOOGLE_SECRET}/versions/", "projects/<project>/secrets/<name>"),
        (f"{GOOGLE_SECRET}/../s3cret", "projects/<project>/secrets/<name>"),
        (f"//secretmanager.googleapis.com/{GOOGLE_SECRET}", "projects/<project>/secrets/<name>"),
        (OCI_SECRET.replace("vaultsecret", "vault"), "ocid1.vaultsecret.<realm>"),
        (f" {OCI_SECRET}", "ocid1.vaultsecret.<realm>"),
    ],
)
def test_near_match_of_a_secret_reference_is_rejected(near_match: str, form: str) -> None:
    with api_with(DB_PASSWORD=near_match), pytest.raises(SettingsError) as error:
        database_settings()

    assert "DB_PASSWORD" in str(error.value)
    assert form in str(error.value)
    assert near_match.strip() not in str(error.value)
    assert "s3cret" not in str(error.value)


def test_missing_secret_store_sdk_is_explained() -> None:
    for reference, package in (
        (OCI_SECRET, "oci"),
        (AZURE_SECRET, "azure-identity"),
        (GOOGLE_SECRET, "google-cloud"),
    ):
        with api_with(DB_PASSWORD=reference), pytest.raises(SettingsError) as error:
            connections().ping()
        assert f"install {package}" in str(error.value)
        assert reference in str(error.value)


def test_a_plain_password_imports_no_store(postgres: Database) -> None:
    code = (
        "import sys; from chalicelib import composition; composition.connections().ping(None);"
        "stores = {'chalicelib.settings.secrets', 'chalicelib.settings.secret_stores'};"
        "sdks = {'botocore', 'azure.identity', 'google.cloud.secretmanager', 'oci'};"
        "loaded = (stores | sdks) & set(sys.modules); sys.exit(str(loaded) if loaded else 0)"
    )
    variables = {**without_database_url(), **postgres.parts, "DB_PASSWORD": postgres.password}

    assert (
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=variables, check=False).returncode == 0
    )


def without_database_url() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "PYTHONPATH")}


class Reader:
    """A process of tests/support/secret_reader.py with a cloud's packages."""

    def __init__(self, python: Path, log: Path, variables: dict[str, str]) -> None:
        self._log = log
        self._log_start = 0
        self._variables: dict[str, str] = {}
        self.process = subprocess.Popen(
            [python, PROJECT / "tests/support/secret_reader.py"],
            cwd=PROJECT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )

    def begin(self, **variables: str) -> None:
        """The next login begins anew, with these variables; the log too."""
        self._variables, self._log_start = variables, len(self._log.read_text())

    def send(self) -> None:
        """Makes the process log in."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(self._variables) + "\n")
        self.process.stdin.flush()
        self._variables = {}

    def receive(self) -> Any:
        """The result of the login."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else pytest.fail(self.log())

    def log_in(self) -> Any:
        self.send()
        return self.receive()

    def log(self) -> str:
        return self._log.read_text()[self._log_start :]


@dataclass
class Cloud:
    """A cloud's secret store and a process that reads it."""

    store: Store
    reader: Reader
    reference: str
    sdk: str
    """The module of the cloud's SDK."""

    def begin(self, **variables: str) -> None:
        self.store.reset()
        self.reader.begin(DB_PASSWORD=self.reference, **variables)


CLOUDS = {
    "azure": (secret_servers.azure, AZURE_SECRET, "azure.keyvault"),
    "gcp": (secret_servers.google, GOOGLE_SECRET, "google.cloud.secretmanager"),
    "oci": (secret_servers.oci, OCI_SECRET, "oci"),
}


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cloud]]:
    """One process for each cloud: importing an SDK takes about a second."""
    with ExitStack() as stack:
        clouds = []
        for name, (reply, reference, sdk) in CLOUDS.items():
            folder, store = tmp_path_factory.mktemp(name), Store(reply)
            variables = stack.enter_context(secret_servers.serving(store, folder))
            reader = Reader(environment(name), folder / "log", variables)
            stack.callback(reader.process.wait)
            stack.callback(reader.process.kill)
            clouds.append(Cloud(store, reader, reference, sdk))
        yield clouds


@pytest.fixture
def started_clouds(clouds: list[Cloud]) -> Iterator[list[Cloud]]:
    yield clouds
    for cloud in clouds:
        check_log_text("a reader's log", cloud.reader.log())


def test_rotation_works_on_every_cloud(started_clouds: list[Cloud], postgres: Database) -> None:
    for cloud in started_clouds:
        store, reader = cloud.store, cloud.reader
        cloud.begin()
        store.text = postgres.json()

        login = reader.log_in()
        assert (login["outcome"], login["sdks"]) == ("ready", [cloud.sdk]), reader.log()
        assert (store.fetches, store.sign_ins) == (1, 1), reader.log()

        postgres.change_password()
        store.text = postgres.json()
        postgres.end_sessions()
        assert reader.log_in()["outcome"] == "ready", reader.log()
        assert store.fetches == 2
        assert "s3cret" not in reader.log()
        assert secret_servers.TOKEN not in reader.log()


def test_plain_secret_works_on_every_cloud(started_clouds: list[Cloud], postgres: Database) -> None:
    for cloud in started_clouds:
        cloud.begin(**postgres.parts)
        cloud.store.text = postgres.password

        assert cloud.reader.log_in()["outcome"] == "ready", cloud.reader.log()


@pytest.mark.parametrize("behaviour", ["down", "forbidden", "broken", "slow"])
def test_every_clouds_failing_store_is_503_without_leaks(
    started_clouds: list[Cloud], postgres: Database, behaviour: str
) -> None:
    for cloud in started_clouds:
        cloud.begin()
        cloud.store.text, cloud.store.behaviour = postgres.json(), behaviour
        cloud.reader.send()

    logins = [cloud.reader.receive() for cloud in started_clouds]

    for cloud, login in zip(started_clouds, logins, strict=True):
        log = cloud.reader.log()
        assert login["outcome"] == "unavailable", log
        assert login["seconds"] < secrets.FIRST_FETCH_TIMEOUT + 10  # includes the import of the SDK
        assert "cannot fetch the secret" in log
        assert secret_servers.ERRORS.get(behaviour, ("", "", ""))[2] in log
        assert "s3cret" not in log
        assert secret_servers.TOKEN not in log
        cloud.store.behaviour = "good"
    time.sleep(secrets.FIRST_RETRY_INTERVAL)
    for cloud in started_clouds:
        assert cloud.reader.log_in()["outcome"] == "ready", cloud.reader.log()
