"""Performance budgets by counts, not by time: round trips, statements, rows, imports, the zip's size.

A failure shows what exceeds the budget. To raise a budget on purpose, change the number and give the reason.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

import pytest
from psycopg2.extensions import parse_dsn

from local.database import Urls
from tests.support.builds import PROJECT, AwsBuild
from tests.support.servers import api_on
from tools.client import SEED_BYTES, Answer, Client, item, seed
from tools.postgres_proxy import Proxy
from tools.postgres_traffic import count_rows

POOL_ARN = "arn:aws:cognito-idp:eu-west-1:123456789012:userpool/eu-west-1_AbCdEfGhI"
MAX_ZIP_SIZE = 9_000_000
"""Bytes; Lambda downloads and unpacks the zip before a cold start (8.5 million with Python 3.11)."""
PACKAGES = {
    "annotated_types",
    "app",
    "chalice",
    "chalicelib",
    "psycopg2",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
    "uuid_utils",
}
"""Packages outside the standard library that the first create imports."""
STANDARD = set(
    """
    array ast atexit base64 binascii bisect bz2 calendar collections contextlib contextvars copy
    copyreg csv dataclasses datetime decimal dis email enum errno fnmatch fractions functools
    genericpath grp hashlib hmac importlib inspect ipaddress itertools json keyword linecache
    locale logging lzma math ntpath numbers opcode operator os pathlib platform posixpath quopri
    random re reprlib secrets select selectors shutil socket ssl stat string struct sysconfig
    tempfile textwrap threading token tokenize traceback types typing urllib uuid warnings weakref
    zipfile zlib zoneinfo
    """.split()  # noqa: SIM905
)
"""Its imports from the standard library, with Python 3.11, 3.12 or 3.13; most of them by pydantic."""
FIRST_CREATE = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from app import app
body = sys.stdin.read()
event = {
    "path": "/orders", "httpMethod": "POST", "pathParameters": None, "stageVariables": None,
    "headers": {"Content-Type": "application/json"}, "multiValueQueryStringParameters": None,
    "requestContext": {
        "resourcePath": "/orders", "httpMethod": "POST", "requestId": "1",
        "authorizer": {"claims": {"custom:tenant_id": sys.argv[2], "sub": "alice"}},
    },
    "body": body, "isBase64Encoded": False,
}
print(app(event, None)["statusCode"], *(set(sys.modules) - before))
"""
Prepare = Callable[[Client], Callable[[], Answer]]


@pytest.fixture(scope="module")
def proxy(app: Any, database: Urls) -> Iterator[Proxy]:  # noqa: ARG001 (it sets the environment)
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}"),
    ):
        yield proxy


def one_order(alice: Client) -> Callable[[], Answer]:
    order_id = alice.place(seed(items=[item()] * 5)).json["order"]["order_id"]
    return lambda: alice.get(f"/orders/{order_id}")


def a_page(query: str) -> Prepare:
    def prepare(alice: Client) -> Callable[[], Answer]:
        for _ in range(7):
            alice.place(seed(items=[item()] * 5))
        cursor = alice.get("/orders?limit=1").json["next_cursor"]
        return lambda: alice.get("/orders?limit=5" + query.format(cursor=cursor))

    return prepare


def a_replay(alice: Client) -> Callable[[], Answer]:
    key = uuid4().hex
    alice.place(key=key)
    return lambda: alice.place(key=key)


@pytest.mark.parametrize(
    ("prepare", "trips", "statements", "rows"),
    [
        pytest.param(lambda alice: alice.place, 1, 3, 1, id="create"),
        pytest.param(lambda alice: lambda: alice.place(key=uuid4().hex), 1, 4, 1, id="create with a key"),
        pytest.param(lambda alice: lambda: alice.place(seed(items=[item()] * 500)), 1, 3, 1, id="500 items"),
        pytest.param(one_order, 1, 2, 2, id="get"),
        pytest.param(a_page(""), 1, 2, 7, id="list"),
        pytest.param(a_page("&cursor={cursor}"), 1, 2, 7, id="cursor"),
        pytest.param(a_page("&offset=1"), 1, 2, 7, id="offset"),
        pytest.param(a_page("&my_orders=true"), 1, 2, 7, id="my orders"),
        pytest.param(a_replay, 2, 6, 3, id="replay"),
    ],
)
def test_request_stays_within_its_database_budget(
    alice: Client, proxy: Proxy, prepare: Prepare, trips: int, statements: int, rows: int
) -> None:
    """Counts include `select set_tenant(...)`; a page reads one row more to detect a next page."""
    request = prepare(alice)
    request()  # the first request prepares the statements

    with proxy.watched() as traffic:
        assert request().status in (200, 201)

    statement_count = sum(len(string.split(";\n")) for string in traffic.statements)
    assert (traffic.trips, statement_count, traffic.rows) == (trips, statements, rows)


def test_rows_are_counted_across_response_fragments() -> None:
    row = b"D\x00\x00\x00\x06ab"
    assert count_rows(row * 3 + row[:4]) == (3, row[:4])
    assert count_rows(b"Z\x00\x00\x00\x05I" + row) == (1, b"")


@pytest.fixture(scope="module")
def cold_start(
    aws_build: AwsBuild, database: Urls, tmp_path_factory: pytest.TempPathFactory
) -> tuple[set[str], dict[str, int]]:
    """The modules that the first create of the built zip imports, and microseconds per import."""
    task = tmp_path_factory.mktemp("cold") / "task"
    with ZipFile(aws_build.zip) as zipped:
        zipped.extractall(task)
    result = subprocess.run(
        [sys.executable, "-S", "-B", "-X", "importtime", "-c", FIRST_CREATE, task, f"cold-{uuid4().hex}"],
        input=SEED_BYTES.decode(),
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database.app,
            "COGNITO_USER_POOL_ARN": POOL_ARN,
            "AWS_LAMBDA_FUNCTION_NAME": "order-api",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    # The log comes first.
    status, *modules = result.stdout.splitlines()[-1].split() if result.stdout else ["nothing"]
    assert status == "201", result.stdout + result.stderr
    times = re.findall(r"^import time:\s*\d+ \|\s*(\d+) \|\s*(\S+)$", result.stderr, re.MULTILINE)
    return set(modules), {name: int(time) for time, name in times}


@pytest.mark.slow
def test_cold_start_imports_only_expected_packages(cold_start: tuple[set[str], dict[str, int]]) -> None:
    modules, times = cold_start
    # Private modules are skipped: a public module imports them, or they are generated.
    packages = {name.partition(".")[0] for name in modules if not name.startswith("_")}
    new = packages - PACKAGES - STANDARD - set(sys.builtin_module_names)

    import_times = [f"{package}: {times.get(package, 0) / 1000:.1f} ms" for package in sorted(new)]
    assert not import_times, "the first create now imports " + ", ".join(import_times)
    assert packages >= PACKAGES, f"no longer needed, take it off the list: {PACKAGES - packages}"


@pytest.mark.slow
def test_cold_start_skips_lazily_imported_modules(cold_start: tuple[set[str], dict[str, int]]) -> None:
    modules, _ = cold_start

    lazy = {
        "snapstart.hooks",
        "identity",
        "settings.secret_stores",
        "settings.secrets",
        "settings.startup",
        "settings.tokens",
        "openapi",
        "orders.models",
        "orders.operations",
        "orders.tables",
    }
    assert modules & {f"chalicelib.{name}" for name in lazy} == set()
    for name in lazy:
        path = PROJECT / "chalicelib" / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name} was renamed"


@pytest.mark.slow
def test_zip_stays_within_its_size_budget(aws_build: AwsBuild) -> None:
    size = aws_build.zip.stat().st_size

    assert size <= MAX_ZIP_SIZE, f"{size - MAX_ZIP_SIZE:,} bytes over"
