"""Lambda SnapStart: a restored instance uses no expired state and no duplicated random state."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psutil
import pytest
from psycopg2.extensions import parse_dsn

from chalicelib.database.role_check import ROLE_CHECK
from chalicelib.database.schema_check import SCHEMA_CHECK
from local import hosts
from local.api_gateway import of_type
from local.database import Urls
from tests.support import secret_servers
from tests.support.builds import PROJECT, AwsBuild
from tests.support.cognito import UserPool
from tests.support.log_lines import of_requests
from tests.support.secret_servers import Store, StoreRequest
from tools.client import Client, Transport, free_port, over_http
from tools.postgres_proxy import Proxy
from tools.postgres_traffic import TERMINATE, Traffic

pytestmark = pytest.mark.slow

POOL_ARN = "arn:aws:cognito-idp:eu-west-1:123456789012:userpool/eu-west-1_AbCdEfGhI"
SECRET_ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:orders-AbCdEf"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
RESTORE_TIMEOUT = 10
"""Lambda's limit for the after-restore hooks, in seconds."""
Json = dict[str, Any]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    with TemporaryDirectory(prefix="order-api-proxy-") as name:
        yield Path(name)


@contextmanager
def proxy_in(folder: Path, database: Urls) -> Iterator[Proxy]:
    with closing(Proxy(folder, Path(parse_dsn(database.app)["host"]))) as proxy:
        yield proxy


def url_through(folder: Path) -> str:
    return f"postgresql://orders_app@/orders?host={folder}"


def messages(traffic: Traffic) -> list[str]:
    """The messages of all connections, without Terminate, whose timing varies."""
    return [kind for kind in traffic.messages if kind != TERMINATE]


def first_words(traffic: Traffic) -> list[set[str]]:
    """The first word of each command in each string, without the checks of role and schema."""
    checks = ROLE_CHECK.decode(), SCHEMA_CHECK.decode()
    strings = [text.removeprefix(checks[0]).removeprefix(checks[1]) for text in traffic.statements]
    return [{line.split()[0] for line in text.split(";\n") if line} for text in strings]


class Instance:
    """A process of tests/support/snapstart_instance.py, which runs named steps."""

    def __init__(self, tenant: str, *options: str, **variables: str) -> None:
        process_variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)}
        lambda_variables = {"COGNITO_USER_POOL_ARN": POOL_ARN, "AWS_LAMBDA_FUNCTION_NAME": "order-api"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.snapstart_instance", tenant, *options],
            cwd=PROJECT,
            env={**process_variables, **lambda_variables, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, step: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{step}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process ended at {step!r}"
        return json.loads(line)

    def sockets(self) -> list[Any]:
        connections: list[Any] = psutil.Process(self.process.pid).net_connections("all")
        return connections

    def __enter__(self) -> "Instance":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=30)


# Expired state


def test_restore_connects_before_the_first_create(folder: Path, database: Urls, tenant: str) -> None:
    with proxy_in(folder, database) as proxy, Instance(tenant, DATABASE_URL=url_through(folder)) as instance:
        with proxy.watched() as before:
            instance.run("snapshot")
            sockets = instance.sockets()
        with proxy.watched() as restoring:
            instance.run("restore")
        with proxy.watched() as first:
            status, _ = instance.run("create")

    assert messages(before) == ["startup", "Q", "Q"], "the warm-up reads a page and an order"
    assert "insert" not in "".join(before.statements).lower()
    assert sockets == []
    assert messages(restoring) == ["startup", "Q"]
    assert first_words(restoring) == [{"prepare"}]
    assert (status, first.trips, messages(first)) == (201, 1, ["Q"])
    assert first_words(first) == [{"select", "execute"}]


def test_warm_up_with_a_rate_limit_counts_nothing(folder: Path, database: Urls, tenant: str) -> None:
    variables = {"DATABASE_URL": url_through(folder), "RATE_LIMIT": "100/s"}
    with proxy_in(folder, database) as proxy, Instance(tenant, **variables) as instance:
        with proxy.watched() as before:
            instance.run("snapshot")
        with proxy.watched() as restoring:
            instance.run("restore")
        with proxy.watched() as first:
            status, _ = instance.run("create")

    assert messages(before) == ["startup", "Q", "Q"], "the warm-up reads a page and an order"
    assert "insert" not in "".join(before.statements).lower()
    assert first_words(restoring) == [{"prepare"}]
    assert (status, messages(first)) == (201, ["Q", "Q"])
    assert first_words(first) == [{"select", "execute"}] * 2


def test_restore_without_prepare_connects_and_checks_the_role(
    folder: Path, database: Urls, tenant: str
) -> None:
    variables = {"DATABASE_URL": url_through(folder), "DB_PREPARE": "off"}
    with proxy_in(folder, database) as proxy, Instance(tenant, **variables) as instance:
        instance.run("snapshot")
        with proxy.watched() as restoring:
            instance.run("restore")
        with proxy.watched() as first:
            status, _ = instance.run("create")

    assert messages(restoring) == ["startup", "Q"]
    assert restoring.statements == [f"{(ROLE_CHECK + SCHEMA_CHECK).decode()}select 1"]
    assert (status, messages(first)) == (201, ["Q"])


def test_secret_is_fetched_again_after_a_restore(folder: Path, database: Urls, tenant: str) -> None:
    """The database moves after the snapshot, so that the cached secret has the old address."""
    old, new = folder / "old", folder / "new"
    for directory in (old, new):
        directory.mkdir()

    def secret(store: Store, _: StoreRequest) -> secret_servers.Answer:
        body = json.dumps({"ARN": SECRET_ARN, "Name": "orders", "SecretString": store.text}).encode()
        return store.secret(lambda: (200, {"Content-Type": "application/x-amz-json-1.1"}, body))

    store = Store(secret, rds(old))
    with (
        proxy_in(old, database) as old_proxy,
        proxy_in(new, database) as new_proxy,
        secret_servers.serving(store) as variables,
        Instance(tenant, DB_PASSWORD=SECRET_ARN, **CREDENTIALS, **variables) as instance,
    ):
        instance.run("snapshot")
        sockets, sent = instance.sockets(), messages(old_proxy.traffic)
        store.text = rds(new)
        instance.run("restore")
        status, _ = instance.run("create")

    assert sockets == []
    assert (status, store.fetches) == (201, 2)
    assert messages(old_proxy.traffic) == sent == ["startup", "Q", "Q"]
    assert messages(new_proxy.traffic) == ["startup", "Q", "Q"]


def rds(host: Path) -> str:
    """A secret in the format of RDS."""
    members = {"host": str(host), "dbname": "orders", "username": "orders_app", "password": uuid4().hex}
    return json.dumps(members)


# Random state


@dataclass(frozen=True)
class Drawn:
    """What draw() returns in the original process, and in its copies and children after a snapshot."""

    original: Json
    copied: list[Json]
    restored: list[Json]
    forked: list[Json]


@pytest.fixture(scope="module")
def drawn(database: Urls) -> Drawn:
    with Instance(f"tenant-{uuid4().hex[:12]}", "--alone", DATABASE_URL=database.app) as instance:
        original = instance.run("draw")
        instance.run("snapshot")  # closes the connections, which a fork must not share
        return Drawn(
            original, *([instance.run(step) for _ in range(3)] for step in ("copied", "restored", "forked"))
        )


def test_restored_instances_generate_different_order_ids(drawn: Drawn) -> None:
    assert len({*map(random_digits, drawn.copied)}) == 1, "without the hook, copies repeat each other"
    assert len({*map(random_digits, drawn.restored)}) == 3


def random_digits(drawn: Json) -> str:
    """A UUID version 7 without its time (RFC 9562, 5.7)."""
    status, order_id = drawn["order"]
    assert status == 201
    return str(order_id[15:])


def test_restored_instances_have_different_random_states(drawn: Drawn) -> None:
    """OpenSSL detects a copy by its process id, which is equal in Lambda's copies."""
    if {copy["process"] for copy in drawn.copied} != {drawn.original["process"]}:
        pytest.skip("no copy under the same process id: this kernel refuses a new namespace (unshare)")

    for name in ("psycopg2's OpenSSL", "Python's OpenSSL", "random"):
        (repeated,) = {copy[name] for copy in drawn.copied}
        assert len({repeated, *(instance[name] for instance in drawn.restored)}) == 4, name


def test_forked_workers_have_different_random_states(drawn: Drawn) -> None:
    """gunicorn may import the API before it forks."""
    assert len({*map(random_digits, drawn.forked)}) == 3
    assert len({worker["psycopg2's OpenSSL"] for worker in drawn.forked}) == 3


# Under Lambda's runtime


class Lambda:
    """The built zip with SnapStart on, under awslambdaric. (Lambda itself requires Python 3.12.)"""

    def __init__(self, build: AwsBuild, folder: Path, variables: dict[str, str]) -> None:
        shutil.copytree(build.folder / "package", folder / "package")
        template = json.loads(build.template.read_text())
        of_type(template, "AWS::Serverless::Function")["SnapStart"] = {"ApplyOn": "PublishedVersions"}
        (folder / "package" / "sam.json").write_text(json.dumps(template))
        self._folder, self._variables = folder, variables

    @contextmanager
    def serving(self, database_url: str) -> Iterator[Transport]:
        """Runs the function with this database."""
        port = free_port()
        variables = {**self._variables, "DATABASE_URL": database_url}
        with hosts.serving("lambda", self._folder, variables, "127.0.0.1", port):
            yield over_http("127.0.0.1", port)


@pytest.fixture
def on_lambda(aws_build: AwsBuild, environment: dict[str, str], tmp_path: Path) -> Lambda:
    return Lambda(aws_build, tmp_path, environment)


def test_lambda_runtime_calls_the_snapstart_hooks(
    on_lambda: Lambda, folder: Path, database: Urls, user_pool: UserPool, tenant: str
) -> None:
    with proxy_in(folder, database) as proxy, on_lambda.serving(url_through(folder)) as transport:
        start, alice = proxy.traffic, Client(transport, user_pool.token(tenant))
        with proxy.watched() as first:
            placed = alice.place()
        with proxy.watched() as second:
            listed = alice.get("/orders?limit=1")

    assert messages(start) == ["startup", "Q", "Q", "startup", "Q"]
    assert (placed.status, first.trips, first.messages) == (201, 1, ["Q"])
    assert first_words(first) == [{"select", "execute"}]
    assert (listed.json["orders"], messages(second)) == ([placed.json["order"]], ["Q"])


def test_snapshot_and_restore_succeed_without_a_database(
    on_lambda: Lambda,
    folder: Path,
    database: Urls,
    user_pool: UserPool,
    tenant: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with on_lambda.serving(url_through(folder)) as transport:
        alice = Client(transport, user_pool.token(tenant))
        unavailable = alice.place()
        with proxy_in(folder, database):
            placed = alice.place()

    log = capfd.readouterr().err
    assert (unavailable.status, unavailable.slug, placed.status) == (503, "unavailable", 201)
    assert "SnapStart: the warm-up ended with 503, the snapshot is taken all the same" in log
    assert "SnapStart: restored without a connection" in log
    lines = of_requests(log)
    assert len(lines) == 2, "the warm-up logs no request line"
    cold = [lines[answer.headers["x-request-id"]]["cold_start"] for answer in (unavailable, placed)]
    assert cold == [True, False], "cold is the first request after the restore, not the warm-up"


def test_unresponsive_database_does_not_exceed_lambdas_restore_timeout(folder: Path, tenant: str) -> None:
    """libpq waits for each address of a host; these listeners accept a connection and send nothing."""
    directories = [folder / str(number) for number in range(6)]
    variables = {
        "DATABASE_URL": url_through(Path(",".join(map(str, directories)))),
        "DB_CONNECT_TIMEOUT": "2",
    }
    with ExitStack() as stack:
        for directory in directories:
            directory.mkdir()
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(directory / ".s.PGSQL.5432"))
            listener.listen()
        with Instance(tenant, **variables) as instance:
            seconds = instance.run("restore")

    assert 5 < seconds < RESTORE_TIMEOUT - 1
