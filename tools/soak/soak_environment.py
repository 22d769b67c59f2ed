"""The environment of a soak: a PostgreSQL server, a proxy that injects faults, and the API under gunicorn."""

import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy import hosts as builds
from local import hosts, issuer
from local.key_server import serving_keys
from migrations.migrate import migrate
from tools.client import free_port
from tools.log_leaks import find_leaks
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected, private_server
from tools.soak.sabotage import SABOTAGES, without_tenant_filter

WORKERS, THREADS = 2, 4
IDLE = 5
"""Connections that each worker may keep: DB_POOL_SIZE."""
MAX_IDLE_CONNECTIONS = (WORKERS + 1) * IDLE
READ_TIMEOUT, POOL_TIMEOUT, CONNECT_TIMEOUT, SLACK = 8, 3, 3, 6
MAX_REQUEST_SECONDS = READ_TIMEOUT + POOL_TIMEOUT + CONNECT_TIMEOUT + SLACK
"""SLACK is for a busy machine, and for the wait until a thread is free."""
START_TIMEOUT = 60
"""Seconds in which gunicorn must have its workers."""


@dataclass(frozen=True)
class TokenIssuer:
    """An issuer that the API accepts, with its key server."""

    variables: Mapping[str, str]
    """The API's settings for it."""
    _issuer: issuer.Issuer

    def token(self, tenant: str, user: str) -> str:
        """Valid for a day: a soak may take hours."""
        return self._issuer.token(tenant, user, sub=user, exp=int(time.time()) + 86_400)


@contextmanager
def token_issuer(folder: Path) -> Iterator[TokenIssuer]:
    """With a signing key in `folder`."""
    tokens = issuer.Issuer(folder)
    with serving_keys(tokens.jwks()) as url:
        yield TokenIssuer(issuer.variables(url), tokens)


@dataclass(frozen=True)
class Door:
    """A build of the GCP door under functions-framework's gunicorn."""

    port: int
    process: hosts.Process
    log: Path
    """Its output."""

    def workers(self) -> list[psutil.Process]:
        """The processes that serve requests; their parent only supervises."""
        return list(psutil.Process(self.process.pid).children())


@dataclass(frozen=True)
class SoakEnvironment:
    server: Server
    proxy: Proxy
    product: Door
    unfiltered: Door
    """The same build without its tenant filter: only row-level security separates tenants."""
    tokens: TokenIssuer

    @property
    def ports(self) -> list[int]:
        return [self.product.port, self.unfiltered.port]

    def connections(self) -> int:
        """The number of the API's connections to the database."""
        ((connections,),) = self.rows("select count(*) from pg_stat_activity where usename = 'orders_app'")
        return int(connections)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return rows(self.server, query, *values)


def rows(server: Server, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Runs a query as the superuser, without the proxy and without row-level security."""
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(query, values)
        result: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
        return result


@contextmanager
def soak_environment(rng: random.Random, sabotage: str | None = None) -> Iterator[SoakEnvironment]:
    """Starts everything, without the guard that `sabotage` names, and stops it afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="order-api-faults-")))
        server = stack.enter_context(private_server())
        stack.callback(refuse_leaks, server.folder / "log")
        migrate(server.urls.owner)
        for statement in SABOTAGES[sabotage] if sabotage else ():
            rows(server, statement)
        tokens = stack.enter_context(token_issuer(folder))
        proxy = Proxy(None, server.folder, parses=False, rng=rng)
        stack.callback(proxy.close)
        variables = {
            **tokens.variables,
            "DATABASE_URL": url(proxy.port),
            "DB_POOL_SIZE": str(IDLE),
            "DB_READ_TIMEOUT": str(READ_TIMEOUT),
            "DB_POOL_TIMEOUT": str(POOL_TIMEOUT),
            "DB_CONNECT_TIMEOUT": str(CONNECT_TIMEOUT),
        }
        if sabotage == "rls":
            variables["DB_ALLOW_UNSAFE_ROLE"] = "1"
        product = stack.enter_context(door(folder / "product", variables, workers=WORKERS))
        unfiltered = stack.enter_context(
            door(folder / "unfiltered", variables, mutate=without_tenant_filter, workers=1)
        )
        yield SoakEnvironment(server, proxy, product, unfiltered, tokens)


def url(*ports: int, more: str = "") -> str:
    """The API's database URL, with these loopback ports."""
    return f"postgresql://orders_app@{','.join(f'127.0.0.1:{port}' for port in ports)}/orders{more}"


@contextmanager
def door(
    folder: Path,
    variables: Mapping[str, str],
    *,
    mutate: Callable[[Path], None] | None = None,
    workers: int = 1,
    threads: int = THREADS,
) -> Iterator[Door]:
    """Builds into `folder` and serves on a free port; the output goes into a file beside the folder.

    Raises AssertionError at the end when the output contains personal data or tokens.
    """
    with redirect_stdout(io.StringIO()):
        builds.build("gcp", folder)
    if mutate:
        mutate(folder)
    port, log = free_port(), folder.with_suffix(".log")
    environment = {**variables, "WORKERS": str(workers), "THREADS": str(threads), "NO_PROXY": "127.0.0.1"}
    with ExitStack() as stack:
        with log.open("wb") as output, _output_into(output.fileno()):
            process = stack.enter_context(hosts.serving("gcp", folder, environment, "127.0.0.1", port))
        opened = Door(port, process, log)
        deadline = time.monotonic() + START_TIMEOUT
        while len(opened.workers()) < workers:  # it listens before its workers have started
            assert time.monotonic() < deadline, f"{workers} workers were to start: {log.read_text()[-2000:]}"
            time.sleep(0.02)
        yield opened
    refuse_leaks(log)


def refuse_leaks(log: Path) -> None:
    """Raises AssertionError when a log contains personal data or tokens."""
    leaks = find_leaks(log.name, log.read_text(errors="replace"))
    assert not leaks, "\n".join(leaks[:20])


@contextmanager
def _output_into(file: int) -> Iterator[None]:
    """Redirects the output of processes that are started inside the block, for their lifetime."""
    saved = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(file, number)
    try:
        yield
    finally:
        for number, before in zip((1, 2), saved, strict=True):
            os.dup2(before, number)
            os.close(before)
