"""Session-wide fixtures: a real PostgreSQL, a user pool and a local server."""

import fcntl
import gc
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deploy import hosts as builds
from local.database import Urls, embedded
from tests.support import cognito
from tests.support.builds import AwsBuild, build_aws
from tests.support.mutants import MUTANTS, NO_ROW_LEVEL_SECURITY, unfiltered_reads
from tests.support.refusals import PRIVATE_ADDRESS, STATUS, CheckRefusal
from tools.client import Answer, Client, Transport, over_http
from tools.log_leaks import find_leaks
from tools.postgres_server import connected
from tools.soak.sabotage import without_tenant_filter

pytest_plugins = ["tests.support.log_leak_plugin", "tests.support.parallel_groups"]
NewClient = Callable[..., Client]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-conformance",
        action="store_true",
        help="write what the local server answers into tools/conform/expected.json",
    )
    parser.addoption(
        "--mutant",
        action="append",
        choices=MUTANTS,
        default=[],
        help="remove one tenant guard from the API in this process, or from its database",
    )


def pytest_configure() -> None:
    """SIGTERM and SIGHUP end the run like Ctrl-C, so that fixtures still stop their servers."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup's SIG_IGN stays
            signal.signal(number, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Spares the garbage collector thousands of tests and imported modules, which live as long as the run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def databases() -> Iterator[Path]:
    """A temporary folder that the embedded server's user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="order-api-tests-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def database(databases: Path, pytestconfig: pytest.Config) -> Iterator[Urls]:
    """PostgreSQL with schema.sql applied by its owner."""
    with embedded(databases / "main") as urls:
        if "no-row-level-security" in pytestconfig.getoption("mutant"):
            with connected(urls.owner) as connection:
                connection.cursor().execute(NO_ROW_LEVEL_SECURITY)
            os.environ["DB_ALLOW_UNSAFE_ROLE"] = "1"
        yield urls
    log = (databases / "main" / "postgres" / "log").read_text()
    assert not find_leaks("PostgreSQL's log", log)


@pytest.fixture(scope="session")
def admin_url(database: Urls) -> str:
    """The superuser's URL: bypasses row-level security."""
    return database.owner.replace("orders_owner@", "postgres@")


@pytest.fixture(scope="session")
def rows(admin_url: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Runs a query as superuser, so that row-level security hides nothing."""
    with connected(admin_url) as connection:

        def query_rows(query: str, *values: Any) -> list[tuple[Any, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                result: list[tuple[Any, ...]] = cursor.fetchall()
                return result

        yield query_rows


@pytest.fixture(scope="session")
def user_pool() -> Iterator[cognito.UserPool]:
    server, endpoint = cognito.start()
    yield cognito.UserPool(endpoint, "shops")
    server.stop()


@pytest.fixture(scope="session")
def environment(database: Urls, user_pool: cognito.UserPool) -> dict[str, str]:
    """The API's environment variables; set in this process before app.py is imported."""
    variables = {
        "DATABASE_URL": database.app,
        "AUTH_PROVIDER": "cognito",
        "COGNITO_USER_POOL_ARN": user_pool.arn,
        "AUTH_AUDIENCE": user_pool.client_id,
        "AUTH_JWKS_URL": user_pool.jwks_url,
        "DOCS": "on",
    }
    os.environ.update(variables)
    return variables


@pytest.fixture(scope="session")
def aws_build(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> AwsBuild:
    """The package for Lambda on this machine's architecture; one for all processes of a run."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):  # a process of xdist
        folder = folder.parent
    with (folder / "aws.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            build_aws(folder / "aws")
            lock.write("built")
    return AwsBuild(folder / "aws")


@pytest.fixture(scope="session")
def app(environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Any]:  # noqa: ARG001 (it must be set first)
    """The real app object, imported once per process."""
    from app import app
    from chalicelib import composition
    from chalicelib.orders import repository as orders
    from chalicelib.orders import statements

    if "no-tenant-filter" in request.config.getoption("mutant"):
        for name, statement in unfiltered_reads(request.getfixturevalue("mutant")).items():
            setattr(orders, name, statement)
            setattr(statements, name, statement)
    yield app
    composition.close()


@pytest.fixture(scope="session")
def in_process(app: Any) -> Transport:
    """Sends requests through the shims' gateway to the app, without sockets."""
    from shims.gateway import Gateway, Request

    gateway = Gateway(app)

    def send(method: str, target: str, headers: Any, body: bytes) -> Answer:
        answer = gateway.handle(Request(method, target, headers, body))
        lower_case = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status, lower_case, answer.body)

    return send


@pytest.fixture(scope="session")
def mutant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Google Cloud build whose SELECTs have no tenant filter."""
    folder = tmp_path_factory.mktemp("mutant") / "gcp"
    builds.build("gcp", folder)
    without_tenant_filter(folder)
    return folder


@pytest.fixture
def drop_tenant_filter(mutant: Path, app: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:  # noqa: ARG001
    """Replaces this process's statements by the mutant's."""
    from chalicelib.orders import repository as orders

    def replace_statements() -> None:
        for name, statement in unfiltered_reads(mutant).items():
            assert repr(statement) != repr(getattr(orders, name))
            monkeypatch.setattr(orders, name, statement)

    return replace_statements


@pytest.fixture(scope="session")
def server(app: Any) -> Iterator[tuple[str, int]]:
    """The local server, on a free port."""
    from local import docs
    from local.server import serve

    server = serve(app, "127.0.0.1", 0, docs.page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield "127.0.0.1", server.port
    server.shutdown()
    thread.join()


@pytest.fixture(scope="session")
def http(server: tuple[str, int]) -> Transport:
    return over_http(*server)


@pytest.fixture
def tenant() -> str:
    """A tenant name that is unique to this test."""
    return f"tenant-{uuid4().hex[:12]}"


@pytest.fixture
def client(in_process: Transport, user_pool: cognito.UserPool, tenant: str) -> NewClient:
    """client() is user alice of this test's tenant; client(tenant=..., user=...) is another caller."""

    def make(tenant: str | None = tenant, user: str = "alice", transport: Transport = in_process) -> Client:
        return Client(transport, user_pool.token(tenant, user))

    return make


@pytest.fixture
def alice(client: NewClient) -> Client:
    return client()


@pytest.fixture
def other_tenant(client: NewClient) -> Client:
    """A user of another tenant."""
    return client(tenant=f"other-{uuid4().hex[:12]}", user="mallory")


@pytest.fixture
def anonymous(in_process: Transport) -> Client:
    """A caller without a token."""
    return Client(in_process, None)


@pytest.fixture
def refused(rows: Callable[..., list[tuple[Any, ...]]], tenant: str) -> CheckRefusal:
    """Asserts the problem response, that it echoes no rejected value, and that no row was stored."""

    def check(answer: Answer, slug: str, *fields: str, absent: str = PRIVATE_ADDRESS) -> None:
        assert (answer.status, answer.slug) == (STATUS[slug], slug), answer.body
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["status"] == answer.status
        if slug in ("validation", "malformed-request"):
            assert answer.fields == list(fields)
        assert all(error["message"] for error in answer.json["errors"])
        text = json.dumps({**answer.json, "request_id": ""}, ensure_ascii=False)
        assert PRIVATE_ADDRESS not in text
        assert absent not in text
        assert rows(
            "select (select count(*) from orders where tenant_id = %s)"
            " + (select count(*) from order_items where tenant_id = %s)"
            " + (select count(*) from idempotency_keys where tenant_id = %s)",
            *[tenant] * 3,
        ) == [(0,)]

    return check
