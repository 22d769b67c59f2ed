"""README.md's commands run as printed; docs/api.md lists every error and every field of an order."""

import json
import os
import re
import signal
import subprocess
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from chalicelib import errors
from chalicelib.orders.new_order import NewItem, NewOrder
from local.database import Urls
from tests.docs.clone import PROJECT, clean_environment, shell
from tests.support.log_leak_plugin import check_log_text
from tools.client import free_port

README = (PROJECT / "README.md").read_text()
API = (PROJECT / "docs/api.md").read_text()
LOCAL_DOCS = (PROJECT / "docs/local.md").read_text()
MASKED = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.]+Z")


def block(text: str, language: str, containing: str) -> str:
    """The fenced block of this language that contains this text."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return next(fenced for fenced in blocks if containing in fenced)


class Stack:
    """A running server: `make run` or another command of the README, in its own folder."""

    def __init__(self, folder: Path, port: int, command: str = "make run", **environment: str) -> None:
        self.folder, self.port = folder, port
        self._log = folder / f"run-{time.monotonic_ns()}.log"
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command.strip()} PORT={port}"],
            cwd=folder,
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
            env=clean_environment() | environment,
            start_new_session=True,
        )

    def output(self) -> str:
        """The output once the server is ready or has ended."""
        deadline = time.monotonic() + 120
        while "Ctrl-C" not in self._log.read_text() and self.process.poll() is None:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)
        return self._log.read_text()

    def ctrl_c(self) -> None:
        """Sends SIGINT to make and its children, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(timeout=30)


@contextmanager
def running_stack(folder: Path, port: int, command: str = "make run", **environment: str) -> Iterator[Stack]:
    """A ready stack; it is stopped at the end, also after a failure."""
    stack = Stack(folder, port, command, **environment)
    try:
        assert "Ctrl-C" in stack.output(), stack.output()
        yield stack
    finally:
        stack.ctrl_c()
        # The output before this line has tokens and commands for the user.
        check_log_text("the output while serving", stack.output().rpartition("Ctrl-C")[2])


@dataclass(frozen=True)
class FirstRun:
    """`make run` in a new clone, until Ctrl-C."""

    order: dict[str, Any]
    """The order that was placed."""
    postgres_runs: bool
    """Whether PostgreSQL runs after Ctrl-C."""


@pytest.fixture(scope="module")
def first_run(clone: Path) -> FirstRun:
    port = free_port()
    curl = block(README, "sh", "test_order.json").replace(":8000", f":{port}")
    with running_stack(clone, port):
        order = json.loads(shell(curl, clone))["order"]
    return FirstRun(order, is_postgres_running(clone / ".local/postgres"))


@pytest.fixture(scope="module")
def stack(clone: Path, first_run: FirstRun) -> Iterator[Stack]:  # noqa: ARG001 (it runs in the same folder before)
    # An unreachable proxy and another provider's variables must have no effect.
    environment = {"HTTP_PROXY": "http://127.0.0.1:9", "AUTH_PROVIDER": "entra", "AUTH_TENANT_CLAIM": "tid"}
    with running_stack(clone, free_port(), **environment) as stack:
        yield stack


@pytest.mark.slow
def test_readme_curl_answers_as_printed(stack: Stack) -> None:
    command = block(README, "sh", "test_order.json").replace(":8000", f":{stack.port}")
    printed = block(README, "json", "Order created successfully")

    output = shell(command, stack.folder)

    assert MASKED.sub("*", output.strip()) == MASKED.sub("*", printed.strip())


@pytest.mark.slow
def test_printed_curls_answer_as_described(stack: Stack) -> None:
    curls = [line for line in stack.output().splitlines() if line.startswith("curl ")]

    placed, replayed, listed, foreign = (shell(curl, Path("/")) for curl in curls)

    assert placed.startswith("HTTP/1.1 201 ")
    assert '"total_amount":99.99,' in placed
    assert replayed.startswith("HTTP/1.1 201 ")
    assert "Idempotent-Replayed: true" in replayed
    assert replayed.splitlines()[-1] == placed.splitlines()[-1]
    order = json.loads(placed.splitlines()[-1])["order"]
    assert listed.startswith("HTTP/1.1 200 ")
    assert json.loads(listed.splitlines()[-1])["orders"][0] == order
    assert foreign.startswith("HTTP/1.1 404 ")


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["gcp", "oci", "azure", "lambda"])
def test_every_cloud_runtime_answers_the_readme_curl(clone: Path, cloud: str) -> None:
    if cloud == "lambda":
        command = block(README, "sh", "local-lambda")
    else:
        (command,) = re.findall(rf"`(make build-{cloud} local-{cloud})`", README)
    with running_stack(clone, port := free_port(), command):
        curl = block(README, "sh", "test_order.json").replace(":8000", f":{port}")
        output = shell(curl, clone)

    printed = block(README, "json", "Order created successfully")
    assert MASKED.sub("*", output.strip()) == MASKED.sub("*", printed.strip())


@pytest.mark.slow
def test_make_token_prints_one_line(stack: Stack) -> None:
    token = shell("make -s token TENANT=acme USER=alice", stack.folder)

    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", token)
    unusual = shell("""make -s token TENANT="it's; echo \\`pwd\\`" USER=zoë""", stack.folder)
    claims = json.loads(urlsafe_b64decode(unusual.split(".")[1] + "=="))
    assert (claims["custom:tenant_id"], claims["cognito:username"]) == ("it's; echo `pwd`", "zoë")


@pytest.mark.slow
def test_documented_chalice_local_command_works(stack: Stack) -> None:
    port = free_port()
    command = block(LOCAL_DOCS, "sh", "chalice local").replace("8001", f"{port} --no-autoreload")
    server = subprocess.Popen(["bash", "-c", f"{command}"], cwd=stack.folder, start_new_session=True)
    try:
        listing = (
            f"curl -s --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:{port}/orders?limit=1"
        )
        token = '-H "Authorization: Bearer $(make -s token TENANT=acme)"'
        assert json.loads(shell(f"{listing} {token}", stack.folder))["limit"] == 1
        assert json.loads(shell(listing, stack.folder))["status"] == 401
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=10)


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_and_keeps_orders(first_run: FirstRun, stack: Stack) -> None:
    token = '-H "Authorization: Bearer $(make -s token TENANT=acme)"'
    url = f"http://127.0.0.1:{stack.port}/orders/{first_run.order['order_id']}"

    body = shell(f"curl -s {url} {token}", stack.folder)

    assert json.loads(body) == {"order": first_run.order}
    assert not first_run.postgres_runs
    assert is_postgres_running(stack.folder / ".local/postgres")


@pytest.mark.slow
def test_database_url_selects_ones_own_server(clone: Path, database: Urls) -> None:
    urls = {"DATABASE_URL": database.app, "OWNER_DATABASE_URL": database.owner}

    with running_stack(clone, free_port(), **urls) as own:
        assert f"Database  {database.app}" in own.output()


def is_postgres_running(data: Path) -> bool:
    """Whether a PostgreSQL with this data folder is running."""
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return any(str(data) in command for command in commands)


def test_every_named_target_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())

    mentioned = set(
        re.findall(r"make (?:-s )?([a-z-]+)", " ".join(re.findall(r"`[^`]*`|```.*?```", README, re.DOTALL)))
    )

    assert mentioned
    assert mentioned <= targets


def test_error_table_lists_every_problem() -> None:
    problems = {problem.slug: problem.status for problem in subclasses(errors.Problem)}
    table = API[API.index("| slug |") : API.index("They are checked")]

    assert {slug: int(status) for slug, status in re.findall(r"\| `([a-z-]+)` \| (\d+)", table)} == problems


def test_api_page_lists_every_field_of_an_order() -> None:
    table = API[API.index("| field | rule |") : API.index("## Amounts")]
    fields = {*NewOrder.model_fields, *(f"items[].{name}" for name in NewItem.model_fields)}

    names = [name for cell in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE) for name in cell.split(", ")]
    assert {name.strip("`") for name in names} == fields


def subclasses(problem: type[errors.Problem]) -> list[type[errors.Problem]]:
    return [kind for child in problem.__subclasses__() for kind in (child, *subclasses(child))]
